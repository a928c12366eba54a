from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.generation.draft import draft_tokens
from minigpt.generation.sampling import gumbel_noise
from minigpt.tokenizer import EOS
from minigpt.training.ngram import build_ngram_table

V = 7
IDS = st.lists(st.integers(0, V - 1), min_size=1, max_size=40)
TABLE = build_ngram_table(np.array([4, 5, 4, 6] * 50), V)


def test_drafts_follow_the_probabilities_of_the_table():
    noise = gumbel_noise(0, 0, 1, V, 1000)
    drafts = Counter(draft_tokens(TABLE, [4], noise[[i]], 1.0)[0] for i in range(1000))
    assert drafts[5] == pytest.approx(500, abs=60)
    assert drafts[6] == pytest.approx(500, abs=60)


def test_a_greedy_draft_is_the_most_frequent_token():
    assert draft_tokens(TABLE, [6], np.zeros((3, V)), 0.0)[0] == 4


def test_at_a_high_temperature_the_noise_decides():
    noise = gumbel_noise(0, 0, 1, V)
    assert draft_tokens(TABLE, [4], noise, 1e300) == [noise[0].argmax()]


def test_a_draft_ends_at_eos():
    table = build_ngram_table(np.array([4, EOS] * 20), V)
    assert draft_tokens(table, [4], np.zeros((5, V)), 0.0) == [EOS]


@given(IDS, IDS, st.integers(0, 99), st.integers(100, 1000))
def test_each_draft_uses_the_longest_context(text, ids, seed, max_bytes):
    table, noise = build_ngram_table(np.array(text), V, max_bytes), gumbel_noise(seed, 0, 1, V, 6)
    expected: list[int] = []
    for gumbel in noise.astype(np.float32):
        expected.append(int((table.lookup(ids + expected) + gumbel).argmax()))
        if expected[-1] == EOS:
            break
    assert draft_tokens(table, ids, noise, 1.0) == expected
