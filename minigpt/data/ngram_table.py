"""Guesses of what the model will write, from a table of n-grams that fits into the model's file.

Speculative decoding (Leviathan et al., arXiv:2211.17192) reads several guessed tokens in one run of the
model and keeps them as far as they are what it would have written: the text is the same, only sooner.
Here a guess is made with the very noise that the model's own choice will use (see `minigpt.generation.sampling`):
guess = argmax of (log p + temperature · g). Where the table and the model agree roughly, they choose
alike even among many likely tokens.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigpt.tokenizer import EOS

CONTEXT = 5  # the longest, in tokens
MOST_TOKENS = 1 << 24  # of a longer text the beginning is enough
BYTES = 1 << 19  # of a table
STEP = 1 / 16  # of log-probabilities in the file, in nats
HOT = 1e6  # a temperature at which they count for nothing


@dataclass(frozen=True)
class Draft:
    """A table with a row for each context, which is a sequence of up to `CONTEXT` tokens; row 0 is the empty one.

    Attributes:
        log_probs: of each token V in each context N, in nats, multiples of `STEP`; float32 (N, V).
        following: row of the longest context that the table has after each token; uint16 (N, V).
    """

    log_probs: np.ndarray
    following: np.ndarray

    def guess(self, ids: list[int], noise: np.ndarray, temperature: float) -> list[int]:
        """The tokens that may follow `ids`, as many as there are rows of noise (n, V); fewer where the text ends."""
        row = 0
        for token in ids[-CONTEXT:]:
            row = self.following[row, token]
        guesses: list[int] = []
        # not log_probs / temperature: one product for all guesses; a very high temperature leaves the noise alone
        for gumbel in (noise * min(temperature, HOT)).astype(np.float32):
            guesses.append(int((self.log_probs[row] + gumbel).argmax()))
            row = self.following[row, guesses[-1]]
            if guesses[-1] == EOS:
                break
        return guesses

    def to_text(self) -> str:
        """For a model file; `from_text` reads it."""
        steps = (self.log_probs / -STEP).astype(np.uint8)
        return base64.b64encode(steps.tobytes() + self.following.astype("<u2").tobytes()).decode()

    @classmethod
    def of(cls, metadata: Mapping[str, Any], vocab_size: int) -> "Draft | None":
        """The table of a model file, if it has one; raises as `from_text`."""
        return cls.from_text(metadata["draft"], vocab_size) if "draft" in metadata else None

    @classmethod
    def from_text(cls, text: str, vocab_size: int) -> "Draft":
        """Raises ValueError where `text` is no table for a vocabulary of this size."""
        data = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
        rows = len(data) // (3 * vocab_size)
        steps = data[: rows * vocab_size].reshape(rows, vocab_size)
        following = data[rows * vocab_size :].view("<u2").reshape(rows, vocab_size)
        if not rows or following.max() >= rows:
            raise ValueError("not a table of drafts")
        return cls(_log_probs(steps), following)


def build_draft(ids: np.ndarray, vocab_size: int) -> Draft:
    """Count what follows the commonest contexts of `ids` (N,): as many as fit into `BYTES`."""
    V = vocab_size
    ids = ids[:MOST_TOKENS].astype(np.int64)
    most = max(1, min(BYTES // (3 * V), 1 << 16))
    occurrences = np.concatenate([counts for _, counts, _, _ in _contexts(ids, V, 1)])
    floor = 1 if len(occurrences) < most else np.partition(occurrences, -most)[-most] + 1

    p = (np.bincount(ids, minlength=V) + 1)[None] / (len(ids) + V)  # (rows so far, V)
    shorter, oldest = (
        np.zeros(1, dtype=np.int64),
        np.zeros(1, dtype=np.int64),
    )  # of each row: its context without
    for keys, counts, positions, rows in _contexts(
        ids, V, floor
    ):  # its oldest token, and that token
        found = np.bincount((rows - len(p)) * V + ids[positions], minlength=len(keys) * V).reshape(
            -1, V
        )
        # interpolated with the shorter context as Witten and Bell do: the more kinds of tokens follow, the more
        kinds = (found > 0).sum(axis=1, keepdims=True)
        p = np.concatenate((p, (found + kinds * p[keys // V]) / (counts[:, None] + kinds)))
        shorter, oldest = np.concatenate((shorter, keys // V)), np.concatenate((oldest, keys % V))
    steps = np.clip(np.rint(np.log(p) / -STEP), 0, 255)
    return Draft(_log_probs(steps), _following(shorter, oldest, V).astype(np.uint16))


def _log_probs(steps: np.ndarray) -> np.ndarray:
    return steps.astype(np.float32) * np.float32(-STEP)


def _following(shorter: np.ndarray, oldest: np.ndarray, vocab_size: int) -> np.ndarray:
    """(N, V): the row of the longest end of each context and a token more that the table has."""
    longer = np.zeros(
        (len(shorter), vocab_size), dtype=np.int64
    )  # row of each context and a token before, 0 for none
    longer[shorter[1:], oldest[1:]] = np.arange(1, len(shorter))
    whole = np.zeros_like(longer)  # row of each context and a token after, 0 for none
    following = np.zeros_like(longer)
    whole[0] = following[0] = longer[0]
    for row in range(1, len(shorter)):  # shorter contexts come first
        without = whole[shorter[row]]
        whole[row] = np.where(without > 0, longer[without, oldest[row]], 0)
        following[row] = np.where(whole[row] > 0, whole[row], following[shorter[row]])
    return following


def _contexts(
    ids: np.ndarray, vocab_size: int, floor: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """By length, from 1 on: the contexts that occur `floor` times or more, numbered as rows of the table.

    Yields for each of them its key (row of the context without its oldest token, times the vocabulary, plus that token)
    and how often it occurs; then all positions of `ids` that follow one of them, and the row of it.
    """
    first, positions, rows = 1, np.arange(len(ids)), np.zeros(len(ids), dtype=np.int64)
    for length in range(1, CONTEXT + 1):
        inside = positions >= length
        positions = positions[inside]
        keys, index, counts = np.unique(
            rows[inside] * vocab_size + ids[positions - length],
            return_inverse=True,
            return_counts=True,
        )
        kept = counts >= floor
        rows = np.where(kept, first + np.cumsum(kept) - 1, 0)[index]
        positions, rows = positions[rows > 0], rows[rows > 0]
        first += int(kept.sum())
        yield keys[kept], counts[kept], positions, rows
