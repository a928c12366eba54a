"""Generation with PyTorch, from a checkpoint."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.common.errors import UserError
from minigpt.data.ngram_table import Draft
from minigpt.model.checkpoint import load_model
from minigpt.model.model import Cache, MiniGPT
from minigpt.tokenizer import Tokenizer, tokenizer_from_dict


class TorchBackend:
    """A model and its tokenizer as `minigpt.generation.engine` wants them."""

    def __init__(
        self, model: MiniGPT, tokenizer: Tokenizer, metadata: dict[str, Any] | None = None
    ):
        """`metadata`: of the checkpoint that the model comes from."""
        self.model, self.tokenizer, self.metadata = model, tokenizer, metadata or {}
        self.max_seq_len = model.max_seq_len
        self.draft = Draft.of(self.metadata, tokenizer.vocab_size)
        self.guesses, self.rows = 7, 16

    @classmethod
    def load(cls, path: Path) -> "TorchBackend":
        """Raises UserError where `path` is no checkpoint."""
        model, metadata = load_model(path)
        bind_parameters(model)
        try:
            return cls(model, tokenizer_from_dict(metadata["tokenizer"]), metadata)
        except (KeyError, ValueError, TypeError, AttributeError):
            raise UserError(f"{path}: not a model of this version of MiniGPT") from None

    def memory(self, rows: int) -> "TorchMemory":
        return TorchMemory(self.model, rows)


def bind_parameters(model: MiniGPT) -> None:
    """Let `model` call functions that have their parameters, where it calls a layer: that takes half the time.

    To call a small layer takes longer than what it computes: PyTorch looks for hooks, and looks its parameters up. A
    module's own attributes come before its layers, so the functions stand there. For a model that only writes.
    """
    for module in model.modules():
        for name, layer in module.named_children():
            module.__dict__[name] = _bound(layer)


def _bound(layer: nn.Module) -> Callable[..., Tensor]:
    match layer:
        case nn.Linear():
            return partial(F.linear, weight=layer.weight, bias=layer.bias)
        case nn.LayerNorm():
            return partial(
                torch.layer_norm,
                normalized_shape=layer.normalized_shape,
                weight=layer.weight,
                bias=layer.bias,
                eps=layer.eps,
            )
        case nn.Embedding():
            return partial(F.embedding, weight=layer.weight)
    return layer


class TorchMemory:
    """See `minigpt.generation.backend.Memory`."""

    def __init__(self, model: MiniGPT, rows: int):
        self._model, self._cache = model, model.cache(rows)
        self._ids = np.zeros(
            (rows, model.max_seq_len + 1), dtype=np.int64
        )  # what has been read, a <pad> before it

    def read(self, row: int, ids: np.ndarray, past: int) -> np.ndarray:
        positions = np.arange(past, past + len(ids))[None]
        return self._run(self._cache.row(row), self._ids[row : row + 1], ids[None], positions)[0]

    def step(self, ids: np.ndarray, past: np.ndarray) -> np.ndarray:
        return self._run(self._cache, self._ids, ids[:, None], past[:, None])[:, 0]

    def _run(
        self, cache: Cache, known: np.ndarray, ids: np.ndarray, positions: np.ndarray
    ) -> np.ndarray:
        """Ids and their positions (B, T), in B rows with the `known` ids (B, S + 1) → logits (B, T, V)."""
        rows = np.arange(len(ids))[:, None]
        known[rows, positions + 1] = ids
        inputs = torch.from_numpy(np.stack((ids, known[rows, positions], positions))).to(
            cache.keys.device
        )
        logits = self._model.step(inputs[0], inputs[1], inputs[2], cache)
        return logits.float().cpu().numpy()
