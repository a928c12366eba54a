"""The exported model as MLflow serves it: text in, its continuation out.

MLflow stores this file with the model ("models from code"), so nothing is pickled.
"""

from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import pandas as pd

from minigpt.generation.engine import generate
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling


class TextModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    def load_context(self, context: Any) -> None:
        self.backend = OnnxBackend(Path(context.artifacts["onnx"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Map a column "text" of prompts to their continuations; `params` as in minigpt-cli."""
        options = dict(params or {})
        max_new_tokens = options.pop("max_new_tokens", 200)
        sampling = Sampling(**options)
        texts = [
            "".join(generate(self.backend, prompt, max_new_tokens, sampling))
            for prompt in model_input["text"]
        ]
        return pd.DataFrame({"text": texts})


mlflow.models.set_model(TextModel())
