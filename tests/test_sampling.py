import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minigpt.errors import UserError
from minigpt.sampling import NEVER_SAMPLED, Sampling, gumbel_noise, next_token

logits = arrays(np.float32, st.integers(5, 60), elements=st.floats(-30, 30, width=32))


def reference(logits, sampling, sample, position) -> int:
    """The contract, word for word."""
    allowed = [i for i in range(len(logits)) if i not in NEVER_SAMPLED]
    ranked = sorted(allowed, key=lambda i: (-logits[i], i))
    if sampling.temperature == 0:
        return ranked[0]
    noise = gumbel_noise(sampling.seed, sample, position, len(logits))
    kept = ranked[: sampling.top_k]
    return max(kept, key=lambda i: float(logits[i]) / sampling.temperature + noise[i])


@given(logits, st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.0]), st.integers(1, 80), st.integers(0, 9), st.integers(0, 9))
def test_next_token_is_the_contract(logits, temperature, top_k, sample, position):
    sampling = Sampling(temperature, top_k, seed=5)
    token = next_token(logits, sampling, sample, position)
    assert token == reference(logits, sampling, sample, position)
    assert token not in NEVER_SAMPLED


def test_noise_is_a_function_of_seed_sample_and_position():
    noise = gumbel_noise(1, 2, 3, 50)
    np.testing.assert_array_equal(noise, gumbel_noise(1, 2, 3, 50))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 4)):
        assert np.abs(noise - gumbel_noise(*other, 50)).min() > 0
    # neighbours in position do not share numbers
    assert not set(noise) & set(gumbel_noise(1, 2, 4, 50))


def test_it_samples_the_softmax():
    values = np.array([0, 0, 0, 0, 1, 2, 3], dtype=np.float32)
    sampling = Sampling(temperature=0.7)
    shares = np.bincount([next_token(values, sampling, 0, position) for position in range(20_000)]) / 20_000
    expected = np.exp(values / 0.7) * ~np.isin(np.arange(7), NEVER_SAMPLED)
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.015)


def test_a_tiny_temperature_is_greedy_and_nothing_overflows():
    values = np.array([0, 0, 0, 1, 5, -1e30], dtype=np.float32)
    assert next_token(values, Sampling(1e-300), 0, 0) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, "temperature: must be a number of 0"),
        ({"temperature": float("nan")}, "temperature: must be a number of 0"),
        ({"temperature": float("inf")}, "temperature: must be a number of 0"),
        ({"top_k": 0}, "top-k: must be 1 or more"),
        ({"seed": -1}, "seed: must be from 0"),
        ({"seed": 2**63}, "seed: must be from 0"),
    ],
)
def test_values_out_of_range_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        Sampling(**changes)
