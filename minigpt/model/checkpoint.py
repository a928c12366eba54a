"""Model files and training states: written atomically, verified when read, never unpickled.

Both are safetensors files. Beside the tensors, a file holds one JSON text under the key "minigpt",
which includes the SHA-256 of everything else. There is a single key because several would be
written in random order, and equal models must give equal files.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from minigpt.common.config import ModelConfig, add_missing
from minigpt.common.errors import UserError, one_line
from minigpt.common.files import atomic_file, parse_json, read_errors
from minigpt.common.format_version import check_format_version
from minigpt.model.model import MiniGPT
from minigpt.model.size import num_parameters
from minigpt.tokenizer import tokenizer_from_dict

Tensors = dict[str, Tensor]


class DamagedFileError(UserError):
    """Error for a file that MiniGPT did not write, or that has changed since."""


def save(path: Path, tensors: Tensors, metadata: dict[str, Any]) -> None:
    """Write `tensors` and `metadata` (JSON types) to `path` atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**metadata, "sha256": _digest(tensors, metadata)})
    with atomic_file(path) as temporary, _os_errors():
        safetensors.torch.save_file(tensors, temporary, {"minigpt": text})


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read the tensors and the metadata of a file that `save` wrote.

    Raises:
        FileNotFoundError: No such file.
        DamagedFileError: The file is truncated, changed, or of another kind.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = parse_json((file.metadata() or {})["minigpt"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        if metadata.pop("sha256") == _digest(tensors, metadata):
            return tensors, metadata
    except (safetensors.SafetensorError, KeyError, ValueError, AttributeError, RecursionError):
        pass
    raise DamagedFileError(f"{path}: damaged, or not written by MiniGPT")


def _digest(tensors: Tensors, metadata: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(metadata).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        # viewed as bytes, because NumPy lacks some dtypes, such as bfloat16
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Raise the library's errors of writing as `OSError`, as Python does."""
    try:
        yield
    except safetensors.SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number)) from None
        raise


def load_model(path: Path) -> tuple[MiniGPT, dict[str, Any]]:
    """Return the model stored at `path`, in evaluation mode, and the file's metadata.

    Raises:
        UserError: The file is missing, damaged or too new, or its tensors are not those of the
            model that its metadata describe, or not finite.
    """
    try:
        with read_errors(path, "run `dvc repro` to train a model"):
            tensors, metadata = load(path)
        check_format_version(path, metadata)
        values = add_missing({"model": metadata["config"]})["model"]
        vocab_size, config = values.pop("vocab_size"), ModelConfig(**values)
        _check_tensors(tensors, num_parameters(vocab_size, config))
        if tokenizer_from_dict(metadata["tokenizer"]).vocab_size != vocab_size:
            raise ValueError("its vocabulary has another size than its model")
        model = MiniGPT(vocab_size, config)
        model.load_state_dict(tensors)
    except DamagedFileError as error:
        raise UserError(f"{error}; run `dvc repro` to train it again") from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a model of this version of MiniGPT: {one_line(error)}"
        ) from None
    return model.eval(), metadata


def _check_tensors(tensors: Tensors, expected: int) -> None:
    """Check tensors before a model of `expected` parameters is built, which may be a huge number.

    Raises:
        ValueError: There are more or fewer, or one is not finite.
    """
    found = sum(tensor.numel() for tensor in tensors.values())
    if found != expected:
        raise ValueError(f"it contains {found:,} parameters, but its config means {expected:,}")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} contains numbers that are not finite")
