"""Build the n-gram table of a training text (`minigpt.data.ngram_table`)."""

from collections.abc import Iterator

import numpy as np

from minigpt.data.ngram_table import MAX_BYTES, MAX_CONTEXT, STEP, Context, NgramTable

MAX_TOKENS = 1 << 24  # more text does not improve a table of this size


def build_ngram_table(ids: np.ndarray, vocab_size: int, max_bytes: int = MAX_BYTES) -> NgramTable:
    """Estimate the next-token probabilities after the most frequent contexts of `ids` (N,).

    A context of n tokens is interpolated with its last n - 1 tokens (Witten & Bell, 1991), where d
    is the number of distinct tokens that follow the context:

        p(token | context) = (count(context, token) + d · p(token | shorter)) / (count(context) + d)
    """
    V = vocab_size
    ids = ids[:MAX_TOKENS].astype(np.int64)
    min_count = _min_count(ids, V, max_contexts=max_bytes // V)

    # the empty context: add one to each count, so that no token has probability 0
    p = (np.bincount(ids, minlength=V) + 1)[None] / (len(ids) + V)  # (1, V)
    contexts: list[Context] = [()]
    levels, probabilities = [contexts], [p]
    for keys, positions, index in _contexts(ids, V, min_count):
        shorter, oldest = np.divmod(keys, V)  # (n,) each
        followed_by = index * V + ids[positions]
        counts = np.bincount(followed_by, minlength=len(keys) * V).reshape(-1, V)  # (n, V)
        distinct = np.count_nonzero(counts, axis=1)[:, None]  # (n, 1)
        p = (counts + distinct * p[shorter]) / (counts.sum(axis=1, keepdims=True) + distinct)
        contexts = [
            (token, *contexts[row])
            for token, row in zip(oldest.tolist(), shorter.tolist(), strict=True)
        ]
        levels.append(contexts)
        probabilities.append(p)
    steps = np.clip(np.rint(np.log(np.concatenate(probabilities)) / -STEP), 0, 255)
    return NgramTable([context for level in levels for context in level], steps.astype(np.uint8))


def _min_count(ids: np.ndarray, vocab_size: int, max_contexts: int) -> int:
    """Return the lowest count that fewer than `max_contexts` contexts reach."""
    counts = np.concatenate(
        [np.bincount(index) for _, _, index in _contexts(ids, vocab_size, min_count=1)]
    )
    if len(counts) < max_contexts:
        return 1
    return int(np.sort(counts)[-max(1, max_contexts)]) + 1


def _contexts(
    ids: np.ndarray, vocab_size: int, min_count: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Find the contexts that occur at least `min_count` times, one length after the other.

    Yields:
        For each length the keys (n,) of its contexts: shorter · V + oldest, where `oldest` is the
        oldest token and `shorter` the index of the remaining context among those of the length
        before; then the positions (M,) in `ids` that such a context precedes, and the index (M,) of
        that context, from 0 to n - 1.
    """
    positions, index = np.arange(len(ids)), np.zeros(len(ids), dtype=np.int64)
    for length in range(1, MAX_CONTEXT + 1):
        positions, index = positions[positions >= length], index[positions >= length]
        keys, index, counts = np.unique(
            index * vocab_size + ids[positions - length], return_inverse=True, return_counts=True
        )
        frequent = counts >= min_count
        kept = frequent[index]
        renumbered = np.cumsum(frequent) - 1
        positions, index, keys = positions[kept], renumbered[index[kept]], keys[frequent]
        yield keys, positions, index
