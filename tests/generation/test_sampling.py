import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minigpt.common.errors import UserError
from minigpt.generation.sampling import (
    NEVER_SAMPLED,
    Noise,
    Sampling,
    gumbel_noise,
    log_probabilities,
    next_tokens,
)
from minigpt.tokenizer import EOS

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.0]),
    top_k=st.integers(1, 80),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.3, 10.0]),
    ignore_eos=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)


def reference(logits, noise, sampling, seen) -> int:
    """The documented order, word for word: one list of candidates, and what each step leaves of it."""
    barred = [*NEVER_SAMPLED, *([EOS] if sampling.ignore_eos else [])]
    scores = {token: float(value) for token, value in enumerate(logits) if token not in barred}
    for token in seen & scores.keys():
        penalty = sampling.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    kept = sorted(scores, key=lambda token: (-scores[token], token))
    if sampling.temperature == 0:
        return kept[0]
    scores = {token: score / sampling.temperature for token, score in scores.items()}
    kept = kept[: sampling.top_k]

    weights = [math.exp(scores[token] - scores[kept[0]]) for token in kept]
    total = math.fsum(weights)
    kept = [
        token for i, token in enumerate(kept) if math.fsum(weights[:i]) < sampling.top_p * total
    ]
    kept = [token for token, weight in zip(kept, weights, strict=False) if weight >= sampling.min_p]
    return max(kept, key=lambda token: scores[token] + noise[token])


@given(
    # multiples of 1/8: equal ones are common, and rounding cannot change an order
    arrays(np.int32, st.integers(5, 60), elements=st.integers(-200, 200)),
    SAMPLINGS,
    st.sets(st.integers(0, 59)),
)
def test_next_tokens_are_those_of_the_documented_order(eighths, sampling, seen):
    logits = (eighths / 8).astype(np.float32)
    noise = gumbel_noise(sampling.seed, 1, 7, len(logits), count=3)
    seen = [token for token in seen if token < len(logits)] * 2  # a text has a token more than once
    texts = [seen, [], seen[:1]]
    expected = [
        reference(logits, row, sampling, set(text)) for row, text in zip(noise, texts, strict=True)
    ]
    assert list(next_tokens(np.tile(logits, (3, 1)), noise, sampling, texts)) == expected


def test_noise_is_a_function_of_seed_sample_and_position():
    noise = gumbel_noise(1, 2, 3, 50)
    np.testing.assert_array_equal(noise, gumbel_noise(1, 2, 3, 50))
    many = gumbel_noise(1, 2, 0, 50, count=10)
    np.testing.assert_array_equal(noise[0], many[3])
    for vocab_size in (5, 50, 64):
        ahead = Noise(1, 2, vocab_size)
        for position, count in ((0, 1), (1, 5), (62, 4), (300, 100), (3, 1)):
            expected = gumbel_noise(1, 2, position, vocab_size, count)
            np.testing.assert_array_equal(ahead.rows(position, count), expected)
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 4)):
        assert np.abs(noise - gumbel_noise(*other, 50)).min() > 0
    # neighbors in position do not share numbers
    assert not set(noise[0]) & set(gumbel_noise(1, 2, 4, 50)[0])


def test_it_samples_the_softmax():
    values = np.array([0, 0, 0, 0, 1, 2, 3], dtype=np.float32)
    drawn = list(
        next_tokens(
            np.tile(values, (20_000, 1)),
            gumbel_noise(0, 0, 0, 7, 20_000),
            Sampling(temperature=0.7),
        )
    )
    expected = np.exp(values / 0.7) * ~np.isin(np.arange(7), NEVER_SAMPLED)
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, expected / expected.sum(), atol=0.015)


def test_a_tiny_temperature_is_greedy_and_nothing_overflows():
    values = np.array([0, 0, 0, 1, 5, -1e30], dtype=np.float32)
    for temperature in (1e-300, 1e-10, 1e-8):
        assert list(next_tokens(values[None], gumbel_noise(0, 0, 0, 6), Sampling(temperature))) == [
            4
        ]
    assert Sampling(1e-300).temperature == 0


def test_a_model_that_gives_no_numbers_does_not_hang():
    for sampling in (Sampling(), Sampling(min_p=0.1), Sampling(top_p=0.5, repetition_penalty=2.0)):
        for value in (np.nan, -np.inf):
            logits = np.full((1, 80), value)
            assert len(list(next_tokens(logits, gumbel_noise(0, 0, 0, 80), sampling, [[4]]))) == 1


def test_log_probability_is_the_model_s_own():
    values = np.log(np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)) + 100
    logprobs = log_probabilities(np.tile(values, (4, 1)), np.arange(4))
    assert [round(math.exp(logprob), 4) for logprob in logprobs] == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, "temperature: must be a number of 0"),
        ({"temperature": float("nan")}, "temperature: must be a number of 0"),
        ({"temperature": float("inf")}, "temperature: must be a number of 0"),
        ({"top_k": 0}, "top-k: must be 1 or more"),
        ({"top_p": 0.0}, "top-p: must be above 0 and at most 1"),
        ({"top_p": float("nan")}, "top-p: must be above 0 and at most 1"),
        ({"min_p": 1.5}, "min-p: must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition-penalty: must be from 0.001 to 1000"),
        ({"repetition_penalty": float("inf")}, "repetition-penalty: must be from 0.001 to 1000"),
        ({"seed": -1}, "seed: must be from 0"),
        ({"seed": 2**63}, "seed: must be from 0"),
    ],
)
def test_values_out_of_range_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        Sampling(**changes)
