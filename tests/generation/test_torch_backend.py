"""The incremental forward pass against the full one."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, build_model, randomize
from hypothesis import given
from hypothesis import strategies as st

from minigpt.generation.torch_backend import TorchKVCache
from minigpt.model.model import MiniGPT

V, S = 11, 16
SIZES = {"d_model": 24, "num_heads": 3, "num_layers": 2, "d_ff": 48, "max_seq_len": S}


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=str)
def model(request) -> MiniGPT:
    torch.manual_seed(0)
    return randomize(build_model(V, **SIZES, **request.param))


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(V, size=(3, S))


def full_logits(model: MiniGPT, ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(ids)).numpy()


@given(st.sets(st.integers(1, S - 1), max_size=2))
def test_chunked_prefill_equals_the_full_forward_pass(model, ids, splits):
    cache = TorchKVCache(model, batch_size=1)
    borders = [0, *sorted(splits), S]
    logits = [cache.prefill(0, ids[0, start:end], start) for start, end in pairwise(borders)]
    expected = full_logits(model, ids[:1])[0]
    np.testing.assert_allclose(np.concatenate(logits), expected, rtol=1e-4, atol=1e-5)


@given(st.lists(st.integers(0, S - 1), min_size=3, max_size=3).map(np.array))
def test_decode_allows_rows_of_different_lengths(model, ids, lengths):
    cache = TorchKVCache(model, batch_size=3)
    cache.cached.keys.fill_(9), cache.cached.values.fill_(9)  # left over from an earlier sequence
    for row, length in enumerate(lengths):
        if length:
            cache.prefill(row, ids[row, :length], 0)
    logits = cache.decode(ids[np.arange(3), lengths], lengths)
    expected = full_logits(model, ids)[np.arange(3), lengths]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
