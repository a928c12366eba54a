"""Generation with PyTorch, from a checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from minigpt.checkpoint import load_model
from minigpt.errors import UserError
from minigpt.model import Cache, MiniGPT
from minigpt.tokenizer import Tokenizer, tokenizer_from_dict


class TorchBackend:
    """A model and its tokenizer as `minigpt.inference` wants them."""

    def __init__(self, model: MiniGPT, tokenizer: Tokenizer, metadata: dict[str, Any] | None = None):
        """`metadata`: of the checkpoint that the model comes from."""
        self.model, self.tokenizer, self.metadata = model, tokenizer, metadata or {}
        self.max_seq_len = model.max_seq_len
        self.device = next(model.parameters()).device

    @classmethod
    def load(cls, path: Path) -> "TorchBackend":
        """Raises UserError where `path` is no checkpoint."""
        model, metadata = load_model(path)
        try:
            return cls(model, tokenizer_from_dict(metadata["tokenizer"]), metadata)
        except (KeyError, ValueError, AttributeError):
            raise UserError(f"{path}: not a model of this version of MiniGPT") from None

    @torch.inference_mode()
    def logits(self, ids: np.ndarray, past: Cache | None) -> tuple[np.ndarray, Any]:
        """See `minigpt.inference.Backend`."""
        logits, present = self.model.step(torch.from_numpy(ids).to(self.device), past)
        return logits.float().cpu().numpy(), present
