import math

import pytest
import torch
import torch.nn.functional as F
from conftest import ARCHITECTURES, build_model, model_config, randomize
from hypothesis import given
from hypothesis import strategies as st

from minigpt.model.kernels import ChunkedAttention
from minigpt.model.model import (
    MiniGPT,
    PositionalEncoding,
    RotaryEncoding,
    TransformerBlock,
    attention_weights,
)

V, L = 11, 16
SIZES = {"d_model": 24, "num_heads": 3, "num_layers": 2, "d_ff": 48, "max_seq_len": L}


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=str)
def model(request) -> MiniGPT:
    torch.manual_seed(0)
    return randomize(build_model(V, **SIZES, **request.param))


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(V, (3, L), generator=torch.Generator().manual_seed(1))


def test_default_config_sets_the_layer_sizes():
    model = build_model(40)
    assert (len(model.blocks), model.blocks[0].attention.num_heads, model.max_seq_len) == (
        4,
        4,
        256,
    )
    assert model.token_embedding.weight.shape == (40, 128)
    assert model.blocks[0].feed_forward.linear1.weight.shape == (512, 128)
    assert model(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 40)


@pytest.mark.parametrize("d_model", [1, 6, 7])
def test_positional_encoding_follows_the_formula(d_model):
    encoding = PositionalEncoding(d_model, max_seq_len=50)(torch.zeros(1, 50, d_model))[0]
    for t in (0, 1, 49):
        for c in range(d_model):
            angle = t / 10000 ** ((c - c % 2) / d_model)
            assert encoding[t, c] == pytest.approx(
                math.cos(angle) if c % 2 else math.sin(angle), abs=1e-6
            )


@given(st.integers(1, 3), st.integers(1, 18), st.integers(0, 2**32 - 1))
def test_attention_formula_matches_pytorch(heads, length, seed):
    q, k, v = torch.randn(3, 2, heads, length, 8, generator=torch.Generator().manual_seed(seed))
    weights = attention_weights(q, k)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, heads, length))
    torch.testing.assert_close(weights @ v, F.scaled_dot_product_attention(q, k, v, is_causal=True))


@given(st.sampled_from([1, 2, 127, 128, 129, 300]), st.integers(0, 2**32 - 1))
def test_chunked_attention_matches_the_explicit_formula(length, seed):
    """Allow for the rounding of bfloat16, which has 8 bits of precision."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, grad = torch.randn(4, 2, 3, length, 8, generator=generator).bfloat16()
    results = []
    for attend in (lambda q, k, v: attention_weights(q, k) @ v, ChunkedAttention.apply):
        inputs = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        exact = results == []  # the formula in float32, for the same inputs
        attended = attend(*(tensor.float() if exact else tensor for tensor in inputs))
        attended.backward(grad.to(attended.dtype))
        results.append([attended.detach(), *(tensor.grad for tensor in inputs)])
    for formula, chunked in zip(*results, strict=True):
        error = (formula.float() - chunked.float()).norm()
        assert error <= 0.02 * formula.float().norm()


def test_fast_attention_matches_the_explicit_formula(model, ids):
    fast = model(ids)
    for block in model.blocks:
        block.attention.fast = False
    slow = model(ids)
    for block in model.blocks:
        block.attention.fast = True
    torch.testing.assert_close(slow, fast, rtol=1e-4, atol=1e-5)


def test_transformer_block_is_pre_norm(ids):
    block = TransformerBlock(model_config(**SIZES))
    x = torch.randn(2, 5, 24)
    y = x + block.attention(block.norm1(x))
    torch.testing.assert_close(block(x), y + block.feed_forward(block.norm2(y)))


def test_model_is_causal(model, ids):
    logits = model(ids)
    for t in range(1, L):
        changed = ids.clone()
        # none of the new ids is special: a model may embed all special ones alike
        changed[:, t:] = 4 + (changed[:, t:] - 3) % (V - 4)
        after = model(changed)
        torch.testing.assert_close(after[:, :t], logits[:, :t], rtol=0, atol=1e-6)
        assert (after[:, t] - logits[:, t]).abs().max() > 1e-3


def test_rotary_scores_depend_only_on_distance():
    rotary = RotaryEncoding(head_dim=8, max_seq_len=L)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(3))
    at = torch.arange(L)[:, None, None]  # (L, 1, 1): one position per row
    scores = {
        (i, j): (rotary(q, at[i]) * rotary(k, at[j])).sum().item()
        for i in range(L)
        for j in range(L)
    }
    for (i, j), score in scores.items():
        assert score == pytest.approx(scores[max(i - j, 0), max(j - i, 0)], abs=1e-5)
    assert scores[0, 0] == pytest.approx((q * k).sum().item())
    assert scores[0, 0] != pytest.approx(scores[3, 0], abs=1e-3)


def test_dropout_is_active_only_in_training():
    torch.manual_seed(0)
    model = build_model(V, **SIZES, dropout=0.5)
    ids = torch.zeros(1, L, dtype=torch.int64)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))
