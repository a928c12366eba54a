import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minigpt.common.errors import UserError
from minigpt.generation.sampling import (
    Sampling,
    gumbel_noise,
    log_probabilities,
    next_token,
)
from minigpt.tokenizer import EOS

# multiples of 1/8: equal ones are common, and rounding cannot change an order
LOGITS = arrays(np.int32, st.integers(5, 60), elements=st.integers(-200, 200)).map(
    lambda eighths: (eighths / 8).astype(np.float32)
)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.0]),
    top_k=st.integers(0, 80),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.3, 10.0]),
    ignore_eos=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)


def reference(logits, noise, sampling, seen) -> int:
    """Apply the documented steps to a list of candidates, without NumPy."""
    first = EOS + 1 if sampling.ignore_eos else EOS
    scores = {token: float(logits[token]) for token in range(first, len(logits))}
    for token in seen & scores.keys():
        penalty = sampling.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    kept = sorted(scores, key=lambda token: (-scores[token], token))
    if sampling.temperature == 0:
        return kept[0]
    scores = {token: score / sampling.temperature for token, score in scores.items()}
    kept = kept[: sampling.top_k] if sampling.top_k else kept
    weights = [math.exp(scores[token] - scores[kept[0]]) for token in kept]
    total = math.fsum(weights)
    kept = [
        token for i, token in enumerate(kept) if math.fsum(weights[:i]) < sampling.top_p * total
    ]
    kept = [token for token, weight in zip(kept, weights, strict=False) if weight >= sampling.min_p]
    return max(kept, key=lambda token: scores[token] + noise[token])


@given(LOGITS, SAMPLINGS, st.sets(st.integers(0, 59)))
def test_next_token_follows_the_documented_steps(logits, sampling, seen):
    noise = gumbel_noise(sampling.seed, 1, 7, len(logits))[0]
    previous_ids = [token for token in seen if token < len(logits)] * 2  # a text repeats tokens
    expected = reference(logits, noise, sampling, set(previous_ids))
    assert next_token(logits, noise, sampling, previous_ids) == expected


def test_noise_is_a_function_of_seed_sample_and_position():
    noise = gumbel_noise(1, 2, 3, 50)
    np.testing.assert_array_equal(noise, gumbel_noise(1, 2, 3, 50))
    np.testing.assert_array_equal(noise[0], gumbel_noise(1, 2, 0, 50, count=10)[3])
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 4)):
        assert np.abs(noise - gumbel_noise(*other, 50)).min() > 0


def test_noise_of_neighboring_positions_shares_no_numbers():
    assert not set(gumbel_noise(1, 2, 3, 50)[0]) & set(gumbel_noise(1, 2, 4, 50)[0])


def test_frequencies_are_those_of_the_softmax():
    logits = np.array([0, 0, 0, 0, 1, 2, 3], dtype=np.float32)
    noise = gumbel_noise(0, 0, 0, 7, 20_000)
    drawn = [next_token(logits, row, Sampling(temperature=0.7)) for row in noise]
    expected = np.exp(logits / 0.7) * (np.arange(7) >= EOS)
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, expected / expected.sum(), atol=0.015)


@pytest.mark.parametrize("temperature", [1e-300, 1e-10, 1e-8])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = np.array([0, 0, 0, 1, 5, -1e30], dtype=np.float32)
    assert next_token(logits, gumbel_noise(0, 0, 0, 6)[0], Sampling(temperature)) == 4


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0), Sampling(top_p=0.5)], ids=str)
def test_logits_that_are_not_finite_are_an_error(sampling, value):
    with pytest.raises(UserError, match="the model computes logits that are not finite"):
        next_token(np.full(80, value), gumbel_noise(0, 0, 0, 80)[0], sampling)


def test_log_probabilities_are_those_of_the_softmax():
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)) + 100
    found = np.exp(log_probabilities(np.tile(logits, (4, 1)), np.arange(4)))
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3, 0.4], atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, "temperature: must be a number of 0"),
        ({"temperature": float("nan")}, "temperature: must be a number of 0"),
        ({"temperature": float("inf")}, "temperature: must be a number of 0"),
        ({"top_k": -1}, r"top-k: must be 0 \(all\) or more, but it is -1"),
        ({"top_p": 0.0}, "top-p: must be above 0 and at most 1"),
        ({"top_p": float("nan")}, "top-p: must be above 0 and at most 1"),
        ({"min_p": 1.5}, "min-p: must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition-penalty: must be from 0.001 to 1000"),
        ({"repetition_penalty": float("inf")}, "repetition-penalty: must be from 0.001 to 1000"),
        ({"seed": -1}, "seed: must be from 0"),
        ({"seed": 2**63}, "seed: must be from 0"),
    ],
)
def test_a_value_out_of_range_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        Sampling(**changes)
