"""Training state on disk: saved atomically, verified when loaded."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minigpt.model.checkpoint import DamagedFileError, Tensors, load, save


def pack_state(
    model: nn.Module, best: Tensors, optimizers: list[torch.optim.Optimizer], others: Tensors
) -> Tensors:
    """The tensors of a training, under one roof: what `unpack_state` needs to go on with it."""
    tensors = {f"other.{name}": tensor for name, tensor in others.items()}
    tensors |= {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for number, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{number}.{index}.{name}": tensor for name, tensor in values.items()
            }
    return tensors


def unpack_state(
    tensors: Tensors, model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> tuple[Tensors, Tensors]:
    """Put what `pack_state` packed into `model` and `optimizers`; returns `best` and `others`."""

    def part(prefix: str) -> Tensors:
        return {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }

    model.load_state_dict(part("model."))
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        for key, value in part(f"optimizer.{number}.").items():
            index, name = key.split(".")
            state["state"].setdefault(int(index), {})[name] = value
        optimizer.load_state_dict(state)
    return part("best."), part("other.")


log = logging.getLogger(__name__)


class ResumeStore:
    """The training states of one run: the newest two, in a folder of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._damaged: list[Path] = []

    def save(self, step: int, tensors: Tensors, metadata: dict[str, Any]) -> None:
        for file in self._damaged:  # or they would count as the newest
            file.unlink(missing_ok=True)
        save(self.folder / f"step-{step:09d}.safetensors", tensors, metadata)
        for old in self._files()[2:]:
            old.unlink()

    def load(self) -> tuple[Tensors, dict[str, Any]] | None:
        """The newest state that is whole; None where there is none."""
        for file in self._files():
            try:
                return load(file)
            except DamagedFileError as error:
                log.warning("%s; going back to the state before it", error)
                self._damaged.append(file)
        return None

    def clear(self) -> None:
        """Forget the states: the training is done."""
        for file in self.folder.glob(".step-*"):  # half-written when a process was killed
            file.unlink()
        for file in self._files():
            file.unlink()
        with contextlib.suppress(OSError):  # somebody else's file in it, or never made
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)
