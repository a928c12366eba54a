"""Stored form of the n-gram table that drafts tokens (`minigpt.generation.draft`).

A model file holds the table in its metadata as text: base64 of a zlib stream (RFC 1950; a browser
reads it with `atob` and `DecompressionStream("deflate")`) of these little-endian arrays:

    uint32  [version, n_1, …, n_5]   number of contexts of each length
    uint32  the contexts of length 1, then those of length 2, …, each with its oldest token first
    uint8   (1 + n_1 + … + n_5, V)   -16 · log p(next token | context); row 0 has no context
"""

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

VERSION = 1
MAX_CONTEXT = 5  # tokens
MAX_BYTES = 3 << 16  # of the probabilities; a larger table predicted the model no better
STEP = 1 / 16  # resolution of the log-probabilities, in nats
HEADER = 1 + MAX_CONTEXT  # numbers

Context = tuple[int, ...]


@dataclass(frozen=True)
class NgramTable:
    """Log-probabilities of the next token after the most frequent contexts of a text.

    Attributes:
        contexts: sequences of up to MAX_CONTEXT tokens, the shortest first; contexts[0] is empty.
        steps: -log p / STEP for each context and next token; uint8 (N, V).
    """

    contexts: list[Context]
    steps: np.ndarray

    @cached_property
    def log_probs(self) -> dict[Context, np.ndarray]:
        """Log-probabilities of the next token (V,), in nats, by context."""
        log_probs = self.steps.astype(np.float32) * np.float32(-STEP)  # (N, V)
        return dict(zip(self.contexts, log_probs, strict=True))

    def lookup(self, ids: list[int]) -> np.ndarray:
        """Return the log-probabilities (V,) for the longest context that `ids` end with."""
        context = tuple(ids[-MAX_CONTEXT:])
        while context not in self.log_probs:
            context = context[1:]
        return self.log_probs[context]

    def to_text(self) -> str:
        """Return the stored form."""
        lengths = np.bincount(list(map(len, self.contexts)), minlength=HEADER)
        ids = [token for context in self.contexts for token in context]
        numbers = np.array([VERSION, *lengths[1:], *ids], dtype="<u4")
        return base64.b64encode(zlib.compress(numbers.tobytes() + self.steps.tobytes(), 9)).decode()

    @classmethod
    def from_text(cls, text: str, vocab_size: int) -> "NgramTable":
        """Parse the stored form.

        Raises:
            ValueError: `text` is damaged, of another version, or for another vocabulary size.
        """
        data = _decompress(text, 5 * MAX_BYTES)
        version, *counts = np.frombuffer(data, "<u4", HEADER).tolist()
        if version != VERSION:
            raise ValueError(f"n-gram table of version {version}; expected {VERSION}")
        contexts: list[Context] = [()]
        offset = 4 * HEADER
        for length, count in enumerate(counts, start=1):
            ids = np.frombuffer(data, "<u4", count * length, offset).reshape(count, length)
            contexts += map(tuple, ids.tolist())
            offset += ids.nbytes
        steps = np.frombuffer(data, np.uint8, offset=offset)
        if len(steps) != len(contexts) * vocab_size:
            raise ValueError("the n-gram table does not fit the vocabulary")
        return cls(contexts, steps.reshape(-1, vocab_size))


def read_ngram_table(metadata: Mapping[str, Any], vocab_size: int) -> NgramTable | None:
    """Return the table in the metadata of a model file, or None if there is none."""
    text = metadata.get("ngram_table")
    return None if text is None else NgramTable.from_text(text, vocab_size)


def _decompress(text: str, max_bytes: int) -> bytes:
    """Decode base64 and zlib; a small text cannot fill the memory."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(base64.b64decode(text, validate=True), max_bytes)
    except zlib.error as error:
        raise ValueError(f"damaged n-gram table: {error}") from None
    if not stream.eof:  # where the checksum is
        raise ValueError("damaged n-gram table: it is cut off or too large")
    return data
