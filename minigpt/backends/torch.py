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
        self.draft = Draft.of(self.metadata, tokenizer.vocab_size)
        self.guesses, self.rows = 7, 16

    @classmethod
    def load(cls, path: Path) -> "TorchBackend":
        """Raises UserError where `path` is no checkpoint."""
        model, metadata = load_model(path)
        try:
            return cls(model, tokenizer_from_dict(metadata["tokenizer"]), metadata)
        except (KeyError, ValueError, TypeError, AttributeError):
            raise UserError(f"{path}: not a model of this version of MiniGPT") from None

    def memory(self, rows: int) -> "TorchMemory":
        return TorchMemory(self.model, rows)


class TorchMemory:
    """See `minigpt.backends.Memory`."""

    def __init__(self, model: MiniGPT, rows: int):
        self._model, self._cache = model, model.cache(rows)
        self._ids = np.zeros((rows, model.max_seq_len + 1), dtype=np.int64)  # what has been read, a <pad> before it

    def read(self, row: int, ids: np.ndarray, past: int) -> np.ndarray:
        positions = np.arange(past, past + len(ids))[None]
        return self._run(self._cache.row(row), self._ids[row : row + 1], ids[None], positions)[0]

    def step(self, ids: np.ndarray, past: np.ndarray) -> np.ndarray:
        return self._run(self._cache, self._ids, ids[:, None], past[:, None])[:, 0]

    def _run(self, cache: Cache, known: np.ndarray, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Ids and their positions (B, T), in B rows with the `known` ids (B, S + 1) → logits (B, T, V)."""
        rows = np.arange(len(ids))[:, None]
        known[rows, positions + 1] = ids
        inputs = torch.from_numpy(np.stack((ids, known[rows, positions], positions))).to(cache.keys.device)
        logits = self._model.step(inputs[0], inputs[1], inputs[2], cache)
        return logits.float().cpu().numpy()
