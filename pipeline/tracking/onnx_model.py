"""Log the exported model as an MLflow model: text in, text out; also in MLflow's ONNX flavor.

`mlflow.pyfunc.log_model` does the same in one call, but opens a run that has ended again, and
copies the metrics of step 0 to the model, those of the system among them.
"""

import os
import re
import shutil
import tempfile
from dataclasses import asdict
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import pandas as pd

from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling
from pipeline.tracking.lineage import installed
from pipeline.tracking.record import Record
from pipeline.tracking.store import client, experiment_id

MODEL_TYPE = "causal-language-model"
DIGEST_TAG = "onnx_sha256"
PACKAGES = ("numpy", "onnxruntime", "pandas")
CODE = Path(__file__).with_name("text_model.py")


def model_name(record: Record) -> str:
    """Return the name of the run without the characters that MLflow refuses in that of a model."""
    return re.sub(r"[/:.%\"'() ]+", "_", record.info["name"]).strip("_")


def log_onnx_model(record: Record, run_id: str, digest: str) -> str:
    """Log the unchanged file with this SHA-256; return the address of the model.

    Raises:
        UserError: the file is of another version of MiniGPT.
    """
    from mlflow.entities import LoggedModelOutput

    backend = OnnxBackend(record.onnx_model)
    name, params, tags = model_name(record), record.read("params"), {DIGEST_TAG: digest}
    # one that an interrupted upload has begun
    begun = f"source_run_id = '{run_id}' AND tags.{DIGEST_TAG} = '{digest}'"
    found = client().search_logged_models([experiment_id()], begun)
    model = (
        found[0]
        if found
        else client().create_logged_model(
            experiment_id(), name, run_id, tags, params, model_type=MODEL_TYPE
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder) / "model", model, record.onnx_model, backend.tokenizer.kind)
        client().log_model_artifacts(model.model_id, f"{folder}/model")
    outputs = client().get_run(run_id).outputs
    if model.model_id not in [output.model_id for output in outputs.model_outputs]:
        client().log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    client().finalize_logged_model(model.model_id, "READY")
    return str(model.model_uri)


def _save(folder: Path, logged: Any, file: Path, tokenizer: str) -> None:
    """Write `file` as an MLflow model with two flavors into `folder`."""
    import mlflow.pyfunc
    from mlflow.models import Model, infer_signature

    text = pd.DataFrame({"text": ["Once upon a time"]})
    packages = (*PACKAGES, "tokenizers") if tokenizer == "bpe" else PACKAGES
    model = Model(
        artifact_path=logged.artifact_location,
        run_id=logged.source_run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
    )
    model.add_flavor("onnx", onnx_version=installed("onnx")[1], data=f"artifacts/{file.name}")
    with tempfile.TemporaryDirectory() as code:
        _copy_modules(Path(code))
        mlflow.pyfunc.save_model(
            folder,
            mlflow_model=model,
            python_model=str(CODE),
            # MLflow takes the path for a URI, in which characters such as # or % have a meaning
            artifacts={"onnx": os.path.relpath(file)},
            code_paths=[f"{code}/minigpt"],
            signature=infer_signature(text, text, {"max_new_tokens": 200, **asdict(Sampling())}),
            input_example=text,
            # MLflow would take seconds to infer them
            pip_requirements=["==".join(installed(package)) for package in packages],
        )


def _copy_modules(folder: Path) -> None:
    """Copy the modules of MiniGPT that the served model imports, directly or not."""
    root = Path(__file__).parents[2]
    finder = ModuleFinder(path=[str(root)])
    finder.run_script(str(CODE))
    modules: list[Any] = list(finder.modules.values())
    for module in modules:
        if module.__file__ and module.__name__ != "__main__":
            file = Path(module.__file__)
            copy = folder / file.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
