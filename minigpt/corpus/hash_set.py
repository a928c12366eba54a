"""Set of 64-bit integers in little more than 8 bytes each; a Python set takes ten times as much."""

import numpy as np


class HashSet:
    """Recent values in a Python set, all others in a sorted array.

    Args:
        max_recent: Size at which the Python set is merged into the array, ≥ 1.
    """

    def __init__(self, max_recent: int = 500_000) -> None:
        self._max_recent = max_recent
        self._sorted = np.empty(0, dtype=np.uint64)
        self._recent: set[int] = set()

    def add(self, value: int) -> bool:
        """Add `value` and return true if it is new."""
        index = int(np.searchsorted(self._sorted, np.uint64(value)))
        if value in self._recent or (index < len(self._sorted) and self._sorted[index] == value):
            return False
        self._recent.add(value)
        if len(self._recent) >= self._max_recent:
            recent = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
            # a stable sort takes linear time for an array that is nearly sorted
            self._sorted = np.sort(np.concatenate((self._sorted, recent)), kind="stable")
            self._recent.clear()
        return True
