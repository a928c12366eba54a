"""The exported model as MLflow serves it: text in, its continuation out.

MLflow stores this file with the model ("models from code"), so nothing is pickled.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import pandas as pd
from mlflow.exceptions import MlflowException

from minigpt.common.errors import UserError
from minigpt.generation.engine import run
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling
from minigpt.generation.sequence import Sequence


class TextModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    def load_context(self, context: Any) -> None:
        self.backend = OnnxBackend(Path(context.artifacts["onnx"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Map a column "text" of prompts to their continuations; `params` as in minigpt-cli."""
        with bad_request():
            sequences = [self._sequence(prompt, params) for prompt in model_input["text"]]
            for _ in run(self.backend, sequences):
                pass
        return pd.DataFrame({"text": [sequence.text for sequence in sequences]})

    def predict_stream(
        self, context: Any, model_input: Mapping[str, str], params: Any = None
    ) -> Iterator[str]:
        """Yield the continuation of the prompt {"text": …} in parts, as it is generated."""
        with bad_request():
            sequence = self._sequence(model_input["text"], params)
            yield from (text for _, text in run(self.backend, [sequence]) if text)

    def _sequence(self, prompt: str, params: Mapping[str, Any] | None) -> Sequence:
        options = dict(params or {})
        max_new_tokens = options.pop("max_new_tokens", 200)
        return Sequence(
            self.backend.tokenizer, prompt, Sampling(**options), max_new_tokens=max_new_tokens
        )


@contextmanager
def bad_request() -> Iterator[None]:
    """Turn an invalid option into an error that MLflow's server answers with status 400."""
    try:
        yield
    except UserError as error:
        raise MlflowException.invalid_parameter_value(str(error)) from None


mlflow.models.set_model(TextModel())
