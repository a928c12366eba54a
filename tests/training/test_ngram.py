"""Compare the n-gram table with counts in plain Python."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.ngram_table import MAX_CONTEXT, STEP
from minigpt.training.ngram import build_ngram_table

V = 7


def count_followers(ids: list[int]) -> dict[tuple, Counter]:
    """Count the tokens that follow each context of up to MAX_CONTEXT tokens."""
    followers = defaultdict(Counter)
    for i, token in enumerate(ids):
        for length in range(min(i, MAX_CONTEXT) + 1):
            followers[tuple(ids[i - length : i])][token] += 1
    return followers


def probabilities(context: tuple, followers: dict[tuple, Counter]) -> np.ndarray:
    """Interpolate with shorter contexts (Witten-Bell), ending with add-one smoothing."""
    counts = np.array([followers[context][token] for token in range(V)], dtype=float)
    if not context:
        return (counts + 1) / (counts.sum() + V)
    distinct = np.count_nonzero(counts)
    shorter = probabilities(context[1:], followers)
    return (counts + distinct * shorter) / (counts.sum() + distinct)


@given(
    st.lists(st.integers(0, V - 1), min_size=1, max_size=60),
    st.lists(st.integers(0, V - 1), max_size=30),
)
def test_log_probs_match_a_reference_ngram_model(ids, text):
    table = build_ngram_table(np.array(ids), V)
    followers = count_followers(ids)
    for end in range(len(text) + 1):
        suffixes = [tuple(text[max(0, end - n) : end]) for n in range(MAX_CONTEXT, -1, -1)]
        context = next(suffix for suffix in suffixes if suffix in followers)
        expected = np.log(probabilities(context, followers))
        np.testing.assert_allclose(table.lookup(text[:end]), expected, atol=0.51 * STEP)


def test_most_frequent_contexts_are_kept():
    rng = np.random.default_rng(0)
    ids = rng.choice(V, 5000, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.03, 0.02])
    table = build_ngram_table(ids, V, max_bytes=100 * V)
    counts = {context: c.total() for context, c in count_followers(ids.tolist()).items()}
    assert 90 <= len(table.contexts) <= 100
    kept = {counts[context] for context in table.contexts}
    assert min(kept) > max(counts[context] for context in counts.keys() - set(table.contexts))


@pytest.mark.parametrize("vocab_size", [70_000, 1 << 20])
def test_large_vocabulary_keeps_the_empty_context(vocab_size):
    table = build_ngram_table(np.array([4, 69_999] * 9), vocab_size)
    assert table.contexts[0] == ()
    assert table.lookup([69_999]).shape == (vocab_size,)
