"""Batches of token ids, addressed by step."""

import itertools
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from minigpt.common.errors import UserError
from minigpt.tokenizer import BOS, PAD

Batch = tuple[np.ndarray, np.ndarray]  # input_ids (B, T), targets (B, T), both int64


class Batches:
    """Rows of at most `max_seq_len` inputs, each with its targets one position later.

    `packed`: documents run on, row after row, nothing wasted. `padded`: each document starts a row of
    its own (a long one takes several) and short rows end in <pad>.

    `batches[step]` is the shuffled training batch of a step: a pure function of (tokens, seed, step),
    so training resumes at any step without a word about the past. Each epoch visits every row once;
    packed rows are shifted by a few tokens each time, so that other tokens stand at the borders.
    Iterating gives every target once, in order: what evaluation needs.

    Args:
        ids: the tokens of a split (N,), N ≥ 2.
        layout: "packed" or "padded".
        batch_size: B, the rows of a batch, ≥ 1.
        max_seq_len: the most inputs in a row, ≥ 1.
        seed: of the order of the rows, ≥ 0.

    Raises:
        UserError: there are fewer than two tokens, so nothing to predict.
    """

    def __init__(
        self, ids: np.ndarray, layout: str, batch_size: int, max_seq_len: int, seed: int = 0
    ):
        if len(ids) < 2:
            raise UserError(
                "data.path: a split of the text holds fewer than two tokens; give it more text"
            )
        self.ids, self.batch_size, self.max_seq_len, self.seed = ids, batch_size, max_seq_len, seed
        self.packed = layout == "packed"
        if self.packed:
            self.starts = np.arange(0, len(ids) - 1, max_seq_len)
            self.ends = np.minimum(self.starts + max_seq_len + 1, len(ids))
        else:
            self.starts, self.ends = _document_rows(ids, max_seq_len)

    @property
    def num_rows(self) -> int:
        """How many rows one epoch has."""
        return len(self.starts)

    @property
    def num_targets(self) -> int:
        """How many predictions one pass over the split makes."""
        return int((self.ends - self.starts - 1).sum())

    def __getitem__(self, step: int) -> Batch:
        epochs, places = np.divmod(
            step * self.batch_size + np.arange(self.batch_size), len(self.starts)
        )
        rows = []
        for epoch, place in zip(epochs.tolist(), places.tolist(), strict=True):
            order, shift = _shuffle(self.seed, epoch, len(self.starts), self.max_seq_len)
            start, end = self.starts[order[place]], self.ends[order[place]]
            if self.packed and end + shift <= len(self.ids):  # other row boundaries in each epoch
                start, end = start + shift, end + shift
            rows.append(self.ids[start:end])
        return _collate(rows)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self.starts), self.batch_size):
            last = first + self.batch_size
            spans = zip(self.starts[first:last], self.ends[first:last], strict=True)
            yield _collate([self.ids[start:end] for start, end in spans])


def _document_rows(ids: np.ndarray, max_seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (starts, ends) that never cross a document; text is never <bos>, so <bos> marks each start."""
    borders = [*np.flatnonzero(ids == BOS).tolist(), len(ids)]
    starts, ends = [], []
    for begin, end in itertools.pairwise(borders):
        for start in range(begin, end - 1, max_seq_len):
            starts.append(start)
            ends.append(min(start + max_seq_len + 1, end))
    return np.array(starts), np.array(ends)


@lru_cache(maxsize=4)
def _shuffle(seed: int, epoch: int, rows: int, max_seq_len: int) -> tuple[np.ndarray, int]:
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(rows), int(rng.integers(max_seq_len))


def _collate(rows: Iterable[np.ndarray]) -> Batch:
    rows = list(rows)
    batch = np.full((len(rows), max(map(len, rows))), PAD, dtype=np.int64)
    for target, row in zip(batch, rows, strict=True):
        target[: len(row)] = row
    return batch[:, :-1].copy(), batch[:, 1:].copy()
