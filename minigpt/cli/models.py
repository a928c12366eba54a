"""Find and load the model that a command names: a file, or a model that MLflow stores."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt.common.errors import UserError

if TYPE_CHECKING:
    from minigpt.generation.onnx_backend import OnnxBackend
    from minigpt.generation.torch_backend import TorchBackend


class BackendName(StrEnum):
    torch = "torch"
    onnx = "onnx"


DEFAULT_MODELS = {
    BackendName.onnx: Path("models/minigpt.onnx"),
    BackendName.torch: Path("models/minigpt.safetensors"),
}


def load_backend(backend: BackendName | None, model: Path | None) -> "OnnxBackend | TorchBackend":
    if model is not None and model.parts[0] in ("models:", "runs:"):
        return _load_tracked(backend, model.as_posix())
    backend, model = _resolve(backend, model)
    if backend is BackendName.torch:
        from minigpt.generation.torch_backend import TorchBackend

        return TorchBackend.load(model)
    from minigpt.generation.onnx_backend import OnnxBackend

    return OnnxBackend(model)


def _load_tracked(backend: BackendName | None, uri: str) -> "OnnxBackend":
    """The ONNX file of a model that MLflow keeps."""
    import logging
    import os
    import tempfile

    if backend is BackendName.torch:
        raise UserError(f"{uri}: MLflow keeps the ONNX file; use --backend onnx")
    if "MLFLOW_TRACKING_URI" not in os.environ and not Path("mlflow.db").exists():
        raise UserError(
            f"{uri}: no tracking store here; run in the project's folder, or set MLFLOW_TRACKING_URI"
        )
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    import mlflow.artifacts

    from minigpt.generation.onnx_backend import OnnxBackend

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        try:
            kept = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
        except Exception as error:  # MLflow's, SQLAlchemy's, the network's
            raise UserError(
                f"{uri}: not found in MLflow: {' '.join(str(error).split())[:200]}"
            ) from None
        files = [kept] if kept.is_file() else sorted(kept.rglob("*.onnx"))
        if len(files) != 1:
            raise UserError(f"{uri}: no model with one ONNX file")
        return OnnxBackend(files[0])


def _resolve(backend: BackendName | None, model: Path | None) -> tuple[BackendName, Path]:
    """Which backend reads which file; each follows from the other where only one is given."""
    if model is None:
        backend = backend or BackendName.onnx
        return backend, DEFAULT_MODELS[backend]
    suffixes = {path.suffix: name for name, path in DEFAULT_MODELS.items()}
    if model.suffix not in suffixes:
        raise UserError(f"{model}: not a model file; it must end in {' or '.join(suffixes)}")
    fitting = suffixes[model.suffix]
    if backend not in (None, fitting):
        raise UserError(
            f"{model}: the {backend} backend does not read {model.suffix} files; use --backend {fitting}"
        )
    return fitting, model
