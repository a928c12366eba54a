"""The ONNX backend against the PyTorch backend."""

import numpy as np
import pytest
import torch
from conftest import FAST, GPT2, build_model, model_metadata, randomize
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.export.onnx_graph import to_onnx
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.torch_backend import TorchBackend

S, ROWS = 24, 2


@pytest.fixture(scope="module", params=[{}, FAST, GPT2], ids=["classic", "fast", "gpt2"])
def backends(request, tokenizer, tmp_path_factory):
    """Return the same model in both backends."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "num_heads": 2, "num_layers": 2, "d_ff": 64, "max_seq_len": S}
    model = randomize(build_model(tokenizer.vocab_size, **sizes, **request.param))
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    path.write_bytes(to_onnx(model, model_metadata(model, tokenizer)))
    return TorchBackend(model, tokenizer), OnnxBackend(path)


PASSES = st.tuples(
    st.integers(0, ROWS),  # the row to prefill; ROWS stands for decoding all
    st.integers(1, S),  # new tokens of a prefill
    st.booleans(),  # whether it starts anew
    st.integers(0, 2**32 - 1),
)


@settings(max_examples=30)
@given(st.lists(PASSES, min_size=1, max_size=12))
def test_any_order_of_passes_gives_the_logits_of_pytorch(backends, passes):
    caches = [backend.new_cache(ROWS) for backend in backends]
    V, lengths = backends[0].tokenizer.vocab_size, np.zeros(ROWS, dtype=np.int64)
    for row, count, anew, seed in passes:
        rng = np.random.default_rng(seed)
        if row == ROWS:
            lengths[lengths == S] = 0
            ids = rng.integers(V, size=ROWS)
            expected, found = (cache.decode(ids, lengths) for cache in caches)
            lengths += 1
        else:
            if anew or lengths[row] + count > S:
                lengths[row] = 0
            ids = rng.integers(V, size=count)
            start = int(lengths[row])
            expected = caches[0].prefill(row, ids, start)
            found = caches[1].prefill(row, ids.tolist(), start)
            lengths[row] += count
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_logits_of_one_pass_survive_the_next(backends):
    cache = backends[1].new_cache(1)
    first = cache.prefill(0, [2], 0)
    before = first.copy()
    cache.prefill(0, [5], 0)
    np.testing.assert_array_equal(first, before)
