"""Character encoder for large texts: table look-ups of whole arrays."""

import contextlib
from collections.abc import Mapping

import numpy as np

from minigpt.tokenizer.base import UNK


class CharTable:
    """Array from code point to id.

    Args:
        ids: Id of each character, each > 0.
    """

    def __init__(self, ids: Mapping[str, int]):
        points = [ord(character) for character in ids]
        # one entry more than code points; the last one is the id of all code points beyond
        size = max([255, *points]) + 2
        self._table = np.full(size, UNK, np.min_scalar_type(max(ids.values(), default=UNK)))
        self._table[points] = list(ids.values())
        # the first 256 code points as bytes; they sort first, so their ids nearly always fit
        self._latin_table = bytes(np.minimum(self._table[:256], 255).tolist())
        self._latin_fits = bool(self._table[:256].max() < 256)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text, (T,)."""
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return np.split(self._encode("".join(texts)), ends)[:-1]  # nothing follows the last text

    def _encode(self, text: str) -> np.ndarray:
        if self._latin_fits:
            # several times faster, for texts that have only the first 256 code points
            with contextlib.suppress(UnicodeEncodeError):
                ids = text.encode("latin-1").translate(self._latin_table)
                return np.frombuffer(ids, dtype=np.uint8)
        return self._table.take(_code_points(text), mode="clip")


def count_characters(text: str) -> dict[str, int]:
    """Return how often each character occurs in `text`."""
    try:
        counts = _count_bytes(text.encode("latin-1"))
    except UnicodeEncodeError:
        counts = np.bincount(_code_points(text))
    return {chr(point): int(counts[point]) for point in np.flatnonzero(counts)}


def _count_bytes(data: bytes) -> np.ndarray:
    """Return how often each byte occurs, (256,)."""
    # pairs of bytes: NumPy counts half as many items in half the time
    pairs = np.frombuffer(data, dtype="<u2", count=len(data) // 2)
    table = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
    counts = table.sum(axis=0) + table.sum(axis=1)
    if len(data) % 2:
        counts[data[-1]] += 1
    return np.asarray(counts)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
