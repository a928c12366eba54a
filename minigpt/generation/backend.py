"""The engines that turn ids into logits: PyTorch, and ONNX Runtime alone. Here is what they have in common."""

from typing import Protocol

import numpy as np

from minigpt.data.ngram_table import Draft
from minigpt.tokenizer import Tokenizer


class Memory(Protocol):
    """What a backend keeps of several texts, a row each: the keys and values of what it has read."""

    def read(self, row: int, ids: np.ndarray, past: int) -> np.ndarray:
        """Ids (T,) that follow the first `past` in `row` → logits (T, V); what was there beyond `past` is forgotten."""
        ...

    def step(self, ids: np.ndarray, past: np.ndarray) -> np.ndarray:
        """As `read`, one id a row, all rows at once: ids (N,), past (N,) → logits (N, V)."""
        ...


class Backend(Protocol):
    """A model as `minigpt.generation.engine` wants it; `torch.py` and `onnx.py` have one each."""

    tokenizer: Tokenizer
    max_seq_len: int
    draft: Draft | None  # what guesses the next tokens, where the model file has it
    guesses: int  # how many to make before a run
    rows: int  # how many texts to write together at most

    def memory(self, rows: int) -> Memory:
        """A new one, for `rows` texts."""
        ...
