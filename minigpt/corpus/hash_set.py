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


class HashArray:
    """Set of 64-bit integers to which many are added at once; little more than 8 bytes each.

    Args:
        max_recent: Size at which the array of recent values is merged into the other one, ≥ 1.
    """

    def __init__(self, max_recent: int = 100_000) -> None:
        self._max_recent = max_recent
        self._sorted = np.empty(0, dtype=np.uint64)
        self._recent = np.empty(0, dtype=np.uint64)

    def add_all(self, values: np.ndarray) -> np.ndarray:
        """Add `values` (N,) in order, and return which of them were new when added, (N,) bool."""
        distinct, first = np.unique(values, return_index=True)
        new = ~(_contained(distinct, self._sorted) | _contained(distinct, self._recent))
        self._recent = _merged(self._recent, distinct[new])
        if len(self._recent) >= self._max_recent:
            self._sorted = _merged(self._sorted, self._recent)
            self._recent = self._recent[:0]
        result = np.zeros(len(values), dtype=bool)
        result[first[new]] = True
        return result


def _contained(values: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Return which of `values` the sorted array contains."""
    if not len(array):
        return np.zeros(len(values), dtype=bool)
    index = np.minimum(np.searchsorted(array, values), len(array) - 1)
    return np.asarray(array[index] == values)


def _merged(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    result = np.concatenate((left, right))
    result.sort(kind="stable")  # takes linear time for two sorted runs
    return result
