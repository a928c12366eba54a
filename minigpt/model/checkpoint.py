"""Weights and training state on disk: written atomically, verified when read, never unpickled.

Both are safetensors files. Beside its tensors a file holds one JSON text under the key "minigpt"
(one key: several would be written in random order, and equal models must be equal files), and in it
the SHA-256 of all the rest.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from minigpt.common.errors import UserError
from minigpt.common.files import atomic_write
from minigpt.model.model import MiniGPT

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


class DamagedFileError(UserError):
    """The file is no safetensors file of MiniGPT, or its content is not what was written."""


def save(path: Path, tensors: Tensors, metadata: dict[str, Any]) -> None:
    """Write `tensors` and `metadata` (anything JSON can say) to `path`, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**metadata, "sha256": _digest(tensors, metadata)})
    atomic_write(path, safetensors.torch.save(tensors, {"minigpt": text}))


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read what `save` wrote.

    Raises:
        FileNotFoundError: no such file.
        DamagedFileError: truncated, changed, or another kind of file.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {})["minigpt"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        if metadata.pop("sha256") == _digest(tensors, metadata):
            return tensors, metadata
    except (safetensors.SafetensorError, KeyError, ValueError, AttributeError):
        pass
    raise DamagedFileError(f"{path}: damaged, or not written by MiniGPT")


def _digest(tensors: Tensors, metadata: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(metadata).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        # as bytes, so that a dtype NumPy does not know is hashed too
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_model(path: Path) -> tuple[MiniGPT, dict[str, Any]]:
    """The model of a checkpoint, in evaluation mode, and the checkpoint's metadata.

    Raises:
        UserError: no such file, a damaged one, or one that holds something else.
    """
    try:
        tensors, metadata = load(path)
        model = MiniGPT(**metadata["config"])
        model.load_state_dict(tensors)
    except FileNotFoundError:
        raise UserError(f"{path}: no such model; run `dvc repro` to train one") from None
    except DamagedFileError as error:
        raise UserError(f"{error}; run `dvc repro` to train it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (KeyError, TypeError, RuntimeError):
        raise UserError(f"{path}: not a model of this version of MiniGPT") from None
    return model.eval(), metadata
