import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import ARCHITECTURES, unlike_at_first
from hypothesis import given
from hypothesis import strategies as st

from minigpt.model import (
    MiniGPT,
    MultiHeadAttention,
    PositionalEncoding,
    RotaryEncoding,
    TransformerBlock,
    attention_weights,
)

V, L = 11, 16


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=str)
def model(request) -> MiniGPT:
    torch.manual_seed(0)
    return unlike_at_first(MiniGPT(V, 24, 3, 2, 48, max_seq_len=L, **request.param))


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(V, (3, L), generator=torch.Generator().manual_seed(1))


def test_default_sizes():
    model = MiniGPT(40)
    assert (len(model.blocks), model.blocks[0].attention.num_heads, model.max_seq_len) == (4, 4, 256)
    assert model.token_embedding.weight.shape == (40, 128)
    assert model.blocks[0].feed_forward.linear1.weight.shape == (512, 128)
    assert model(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 40)


@pytest.mark.parametrize("d_model", [1, 6, 7])
def test_positional_encoding_is_the_formula(d_model):
    encoding = PositionalEncoding(d_model, max_seq_len=50)(torch.zeros(1, 50, d_model))[0]
    for t in (0, 1, 49):
        for c in range(d_model):
            angle = t / 10000 ** ((c - c % 2) / d_model)
            assert encoding[t, c] == pytest.approx(math.cos(angle) if c % 2 else math.sin(angle), abs=1e-6)


@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_the_attention_formula_equals_pytorch_s(heads, new, past, seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, heads, new, 8, generator=generator)
    k, v = torch.randn(2, 2, heads, past + new, 8, generator=generator)
    weights = attention_weights(q, k)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, heads, new))
    mask = torch.arange(past + new) <= past + torch.arange(new).unsqueeze(1)
    torch.testing.assert_close(weights @ v, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_the_fast_path_computes_the_same(ids):
    attention = MultiHeadAttention(24, num_heads=3, dropout=0.0)
    x = torch.randn(2, L, 24, generator=torch.Generator().manual_seed(2))
    fast, (k, v) = attention(x)
    fast_cached, _ = attention(x[:, 5:], (k[:, :, :5], v[:, :, :5]))
    attention.fast = False
    torch.testing.assert_close(attention(x)[0], fast)
    torch.testing.assert_close(attention(x[:, 5:], (k[:, :, :5], v[:, :, :5]))[0], fast_cached)


def test_a_block_normalises_first_and_adds(ids):
    block = TransformerBlock(24, num_heads=3, d_ff=48, dropout=0.0)
    x = torch.randn(2, 5, 24)
    y = x + block.attention(block.norm1(x))[0]
    torch.testing.assert_close(block(x)[0], y + block.feed_forward(block.norm2(y)))


def test_no_logit_depends_on_a_later_token(model, ids):
    logits = model(ids)
    for t in range(1, L):
        changed = ids.clone()
        changed[:, t:] = (changed[:, t:] + 1) % V
        after = model(changed)
        torch.testing.assert_close(after[:, :t], logits[:, :t], rtol=0, atol=1e-6)
        assert (after[:, t] - logits[:, t]).abs().max() > 1e-3


@given(st.integers(0, L - 1), st.integers(0, L - 1))
def test_cached_logits_equal_uncached_ones(model, ids, first, second):
    whole = model(ids)
    past, parts = None, []
    borders = sorted({0, first, second, L})
    for start, end in pairwise(borders):
        logits, past = model.step(ids[:, start:end], past)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_cached_one_by_one_equals_uncached_at_every_length(model, ids):
    past = None
    for t in range(L):
        logits, past = model.step(ids[:, t : t + 1], past)
        torch.testing.assert_close(logits[:, 0], model(ids[:, : t + 1])[:, -1], rtol=1e-4, atol=1e-5)


def test_rotary_scores_depend_on_the_distance_alone():
    rotary = RotaryEncoding(head_dim=8, max_seq_len=L)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(3))
    scores = {(i, j): (rotary(q, i) * rotary(k, j)).sum().item() for i in range(L) for j in range(L)}
    for (i, j), score in scores.items():
        assert score == pytest.approx(scores[max(i - j, 0), max(j - i, 0)], abs=1e-5)
    assert scores[0, 0] == pytest.approx((q * k).sum().item())
    assert scores[0, 0] != pytest.approx(scores[3, 0], abs=1e-3)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = MiniGPT(V, d_model=24, num_heads=3, num_layers=1, d_ff=48, max_seq_len=L, dropout=0.5)
    ids = torch.zeros(1, L, dtype=torch.int64)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))
