"""Interface of the inference backends, `torch_backend` and `onnx_backend`."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from minigpt.data.ngram_table import NgramTable
from minigpt.tokenizer import Tokenizer


class KVCache(Protocol):
    """Keys and values of a batch of sequences, one per row."""

    def prefill(self, row: int, ids: Sequence[int] | np.ndarray, cached_length: int) -> np.ndarray:
        """Append `ids` (T,) to one row and return their logits (T, V).

        The first `cached_length` positions of the row are kept; any beyond them are discarded.
        """
        ...

    def decode(self, ids: np.ndarray, cached_lengths: np.ndarray) -> np.ndarray:
        """Append one id to every row: ids (B,), cached_lengths (B,) → logits (B, V)."""
        ...


class Backend(Protocol):
    """A model that `minigpt.generation` can run.

    Attributes:
        tokenizer: the tokenizer that the model was trained with.
        max_seq_len: length of the context window, in tokens.
        ngram_table: the source of draft tokens, if the model file has one.
        draft_length: number of draft tokens to verify in one forward pass.
        max_batch_size: number of sequences to decode together.
    """

    tokenizer: Tokenizer
    max_seq_len: int
    ngram_table: NgramTable | None
    draft_length: int
    max_batch_size: int

    def new_cache(self, batch_size: int) -> KVCache:
        """Return an empty cache with `batch_size` rows."""
        ...
