"""Load the model that a command names: a file, or a model stored by MLflow."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, cast

from minigpt.cli.input import expand_home
from minigpt.cli.output import warn
from minigpt.common.entry_point import raise_on_interrupt
from minigpt.common.errors import UserError
from minigpt.common.files import parse_json

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
# outputs of the pipeline, made from the model in reports/export.json
EXPORTED = ("models/minigpt.onnx", "models/minigpt.*.onnx")
MLFLOW_SCHEMES = ("models:/", "runs:/")
BACKENDS = {path.suffix: name for name, path in DEFAULT_MODELS.items()}


def load_backend(name: BackendName | None, model: Path | None) -> "OnnxBackend | TorchBackend":
    """Load a model; the file extension implies the backend, and the backend the default file.

    Raises:
        UserError: There is no such model, it is damaged, or the backend cannot read it.
    """
    model = model or DEFAULT_MODELS[name or BackendName.onnx]
    if model.as_posix().startswith(MLFLOW_SCHEMES):
        return _load_from_mlflow(name, model.as_posix())
    if model.suffix not in BACKENDS:
        raise UserError(f"{model}: not a model file; it must end in {' or '.join(BACKENDS)}")
    backend = BACKENDS[model.suffix]
    if name not in (None, backend):
        raise UserError(
            f"{model}: the {name} backend cannot read {model.suffix} files; use --backend {backend}"
        )
    model = expand_home(model)
    if not os.path.exists(model):
        raise UserError(f"{model}: no such model; run `dvc repro` to train one, or name another")
    if backend is BackendName.torch:
        from minigpt.generation.torch_backend import TorchBackend

        return TorchBackend.load(model)
    return _load_onnx(model, str(model))


def _load_onnx(path: Path, name: str) -> "OnnxBackend":
    """Load an ONNX file; warn if nothing proves that it is the file that was exported.

    Raises:
        UserError: the file is damaged, or the quantized form of an earlier model.
    """
    from minigpt.generation.onnx_backend import OnnxBackend

    backend = OnnxBackend(path)
    reported = _reported_sha256(path)
    if not backend.verified:
        warn(f"{name}: contains no SHA-256, so damage cannot be detected; export it again")
    elif reported not in (None, source_sha256(backend)):
        if backend.metadata.get("quantization"):
            raise UserError(
                f"{name}: made from another model than {DEFAULT_MODELS[BackendName.onnx]}; add its "
                "format to quantize.formats and run `dvc repro`, or delete the file"
            )
        warn(f"{name}: not the file in reports/export.json; run `dvc checkout` or `dvc repro`")
    return backend


def source_sha256(backend: "OnnxBackend") -> str:
    """Return the SHA-256 of the file that a quantized model was made from; otherwise its own."""
    quantization = backend.metadata.get("quantization") or {}
    return str(quantization.get("source_sha256", backend.sha256))


def _reported_sha256(path: Path) -> str | None:
    """Return the SHA-256 of models/minigpt.onnx, if `path` is an output of its project."""
    path = path.absolute()
    if any(map(path.match, EXPORTED)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            report = path.parents[1] / "reports/export.json"
            return str(parse_json(report.read_bytes())["sha256"])
    return None


def _load_from_mlflow(name: BackendName | None, uri: str) -> "OnnxBackend":
    """Download the ONNX file of a model and load it."""
    if name is BackendName.torch:
        raise UserError(f"{uri}: MLflow stores the ONNX file only; use --backend onnx")
    with _downloaded(uri) as (_, backend):
        return backend


@contextmanager
def _downloaded(uri: str) -> Iterator["tuple[Path, OnnxBackend]"]:
    """Yield the ONNX file of a model that MLflow stores, and the model."""
    import tempfile

    from minigpt.cli.mlflow_store import download

    raise_on_interrupt()  # removes the folder
    with tempfile.TemporaryDirectory() as folder:
        file = download(uri, Path(folder))
        try:
            yield file, _load_onnx(file, uri)
        except UserError as error:  # names the temporary file
            raise UserError(str(error).replace(str(file), uri)) from None


@contextmanager
def onnx_file(model: Path | None) -> Iterator["tuple[Path, OnnxBackend]"]:
    """Yield the ONNX file that `--model` names, and the model in it.

    Raises:
        UserError: There is no such model, it is damaged, or it is not an ONNX file.
    """
    model = expand_home(model or DEFAULT_MODELS[BackendName.onnx])
    if model.as_posix().startswith(MLFLOW_SCHEMES):
        with _downloaded(model.as_posix()) as downloaded:
            yield downloaded
        return
    backend = load_backend(BackendName.onnx, model)
    yield model, cast("OnnxBackend", backend)
