"""The exported model as MLflow serves it: a text in, its continuation out.

MLflow stores this file itself with the model ("models from code"), so nothing is pickled.
"""

from pathlib import Path

import mlflow.models
import mlflow.pyfunc
import pandas as pd

from minigpt.generation.engine import generate
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling


class TextModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    def load_context(self, context) -> None:
        self.backend = OnnxBackend(Path(context.artifacts["onnx"]))

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        """A column "text" of prompts → a column "text" of their continuations; `params` as in minigpt-cli."""
        options = dict(params or {})
        max_new_tokens = options.pop("max_new_tokens", 200)
        texts = [
            generate(self.backend, prompt, max_new_tokens, Sampling(**options))
            for prompt in model_input["text"]
        ]
        return pd.DataFrame({"text": ["".join(pieces) for pieces in texts]})


mlflow.models.set_model(TextModel())
