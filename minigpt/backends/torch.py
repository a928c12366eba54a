"""Generation with PyTorch, from a checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from minigpt.checkpoint import load_model
from minigpt.draft import Draft
from minigpt.errors import UserError
from minigpt.model import Cache, MiniGPT
from minigpt.tokenizer import Tokenizer, tokenizer_from_dict


class TorchBackend:
    """A model and its tokenizer as `minigpt.inference` wants them."""

    def __init__(self, model: MiniGPT, tokenizer: Tokenizer, metadata: dict[str, Any] | None = None):
        """`metadata`: of the checkpoint that the model comes from."""
        self.model, self.tokenizer, self.metadata = model, tokenizer, metadata or {}
        self.max_seq_len = model.max_seq_len
        self.draft: Draft | None = None
        self.guesses = 5

    @classmethod
    def load(cls, path: Path) -> "TorchBackend":
        """Raises UserError where `path` is no checkpoint."""
        model, metadata = load_model(path)
        try:
            return cls(model, tokenizer_from_dict(metadata["tokenizer"]), metadata)
        except (KeyError, ValueError, AttributeError):
            raise UserError(f"{path}: not a model of this version of MiniGPT") from None

    def memory(self, rows: int) -> "TorchMemory":
        return TorchMemory(self.model, rows)


class TorchMemory:
    """See `minigpt.backends.Memory`."""

    def __init__(self, model: MiniGPT, rows: int):
        self._model = model
        self._device = next(model.parameters()).device
        self._ids = np.zeros((rows, model.max_seq_len), dtype=np.int64)
        self._caches: list[Cache | None] = [None] * rows

    @torch.inference_mode()
    def read(self, row: int, ids: np.ndarray, past: int) -> np.ndarray:
        self._ids[row, past : past + len(ids)] = ids
        cache = _first(self._caches[row], past, int(self._ids[row, past - 1])) if past else None
        logits, self._caches[row] = self._model.step(torch.from_numpy(ids[None]).to(self._device), cache)
        return logits[0].float().cpu().numpy()

    def step(self, ids: np.ndarray, past: np.ndarray) -> np.ndarray:
        # the model takes a batch only of rows of one length, so one after another
        return np.concatenate([self.read(row, ids[row : row + 1], int(past[row])) for row in range(len(ids))])


def _first(cache: Cache | None, length: int, last_id: int) -> Cache:
    """The cache as it was after its first `length` positions, the last of them `last_id`."""
    assert cache
    layers = [(keys[:, :, :length], values[:, :, :length]) for keys, values in cache.layers]
    return Cache(layers, torch.full_like(cache.last_id, last_id))
