"""Batches of token ids, addressed by step.

The lesson of this package. A language model learns to predict the next token, so the targets of a
row are its inputs one position later:

    ids         <bos>  h  e  l  l  o  <eos>
    input_ids   <bos>  h  e  l  l  o
    targets       h    e  l  l  o  <eos>

Which document comes next cannot be predicted from the one before, and every document starts with
<bos>. So <bos> is never a target: <pad> replaces it, which the loss ignores.

Training reads a shuffled batch per step (`batches[step]`), evaluation reads every row once, in
order (`for batch in batches`). Shapes: B = batch_size rows, T ≤ max_seq_len tokens.
"""

import itertools
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from minigpt.common.errors import UserError
from minigpt.tokenizer import BOS, PAD

Batch = tuple[np.ndarray, np.ndarray]  # input_ids (B, T), targets (B, T), both int64


class Batches:
    """Rows of at most `max_seq_len` inputs and their targets.

    Layout "packed": documents follow one another without padding, and rows cut the text every
    `max_seq_len` tokens. Layout "padded": each document starts a new row (a long one takes
    several), and short rows end in <pad>.

    `batches[step]` is a pure function of (ids, seed, step): training can resume at any step; no
    loader state is needed. Each epoch visits every row once. Packed rows are shifted by a few
    tokens in each epoch, so that the row boundaries fall on different tokens.

    Args:
        ids: Tokens of a split (N,), N ≥ 2.
        layout: "packed" or "padded".
        batch_size: Rows of a batch, ≥ 1.
        max_seq_len: Maximum number of inputs in a row, ≥ 1.
        seed: Seed of the order of the rows, ≥ 0.

    Raises:
        UserError: There are fewer than two tokens, so there is nothing to predict.
    """

    def __init__(
        self, ids: np.ndarray, layout: str, batch_size: int, max_seq_len: int, seed: int = 0
    ):
        if len(ids) < 2:
            raise UserError(
                "data.path: a split of the text has fewer than two tokens; add more text"
            )
        self.ids, self.batch_size, self.max_seq_len, self.seed = ids, batch_size, max_seq_len, seed
        self.packed = layout == "packed"
        # Row i is ids[starts[i]:ends[i]]: up to max_seq_len inputs and one more, the last target.
        if self.packed:
            self.starts = np.arange(0, len(ids) - 1, max_seq_len)  # (rows,)
            self.ends = np.minimum(self.starts + max_seq_len + 1, len(ids))  # (rows,)
        else:
            self.starts, self.ends = _document_rows(ids, max_seq_len)

    @property
    def num_rows(self) -> int:
        """Number of rows in an epoch."""
        return len(self.starts)

    @property
    def num_targets(self) -> int:
        """Number of predictions in one pass over the split, the same in both layouts."""
        return int(np.count_nonzero(self.ids[1:] != BOS))

    def __getitem__(self, step: int) -> Batch:
        # Count the rows over all epochs: a step takes the next batch_size of them, and a batch may
        # take its last rows from the next epoch.
        indices = step * self.batch_size + np.arange(self.batch_size)  # (B,)
        epochs, positions = np.divmod(indices, self.num_rows)  # (B,), (B,)
        rows = []
        for epoch, position in zip(epochs.tolist(), positions.tolist(), strict=True):
            order, shift = _shuffle(self.seed, epoch, self.num_rows, self.max_seq_len)
            start, end = self.starts[order[position]], self.ends[order[position]]
            if self.packed and end + shift <= len(self.ids):
                start, end = start + shift, end + shift
            rows.append(self.ids[start:end])
        return _collate(rows)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, self.num_rows, self.batch_size):
            last = first + self.batch_size
            spans = zip(self.starts[first:last], self.ends[first:last], strict=True)
            yield _collate([self.ids[start:end] for start, end in spans])


def _document_rows(ids: np.ndarray, max_seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and ends of rows that never span two documents."""
    # Text is never encoded as <bos>, so each <bos> starts a document.
    borders = [*np.flatnonzero(ids == BOS).tolist(), len(ids)]
    starts, ends = [], []
    for begin, end in itertools.pairwise(borders):
        for start in range(begin, end - 1, max_seq_len):
            starts.append(start)
            ends.append(min(start + max_seq_len + 1, end))
    return np.array(starts), np.array(ends)


@lru_cache(maxsize=4)
def _shuffle(seed: int, epoch: int, num_rows: int, max_seq_len: int) -> tuple[np.ndarray, int]:
    """Return the order of the rows in an epoch, and the shift of packed rows."""
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(num_rows), int(rng.integers(max_seq_len))


def _collate(rows: list[np.ndarray]) -> Batch:
    """Pad the rows to the longest, and split them into inputs and targets."""
    batch = np.full((len(rows), max(map(len, rows))), PAD, dtype=np.int64)  # (B, T+1)
    for padded, row in zip(batch, rows, strict=True):
        padded[: len(row)] = row
    targets = np.where(batch[:, 1:] == BOS, PAD, batch[:, 1:])  # (B, T)
    return batch[:, :-1].copy(), targets  # (B, T), (B, T)
