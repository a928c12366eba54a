"""Log the exported model as an MLflow model: text in, text out."""

import os
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling
from pipeline.tracking.lineage import installed
from pipeline.tracking.store import mlflow

PACKAGES = ("numpy", "onnxruntime", "pandas")


def log_onnx_model(run_id: str, path: Path) -> str:
    """Log the unchanged file; return the URI of the model.

    Raises:
        UserError: the file is of another version of MiniGPT.
    """
    from mlflow.models import Model, infer_signature

    text = pd.DataFrame({"text": ["Once upon a time"]})
    bpe = OnnxBackend(path).tokenizer.kind == "bpe"
    packages = (*PACKAGES, "tokenizers") if bpe else PACKAGES
    # not mlflow.pyfunc.log_model, which opens a run that has ended again
    model = Model.log(
        None,
        mlflow().pyfunc,
        run_id=run_id,
        name="model",
        python_model=str(Path(__file__).with_name("text_model.py")),
        # MLflow takes the path for a URI, in which characters such as # or % have a meaning
        artifacts={"onnx": os.path.relpath(path)},
        code_paths=["minigpt"],
        signature=infer_signature(text, text, {"max_new_tokens": 200, **asdict(Sampling())}),
        input_example=text,
        # MLflow would take seconds to infer them
        pip_requirements=["==".join(installed(package)) for package in packages],
    )
    return str(model.model_uri)
