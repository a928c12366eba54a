from collections import Counter

import numpy as np
import pytest

from minigpt.generation.draft import draft_tokens
from minigpt.generation.sampling import gumbel_noise
from minigpt.tokenizer import EOS
from minigpt.training.ngram import build_ngram_table

V = 7
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
