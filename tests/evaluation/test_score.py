import math

import numpy as np
import pytest
import torch
from conftest import build_model
from hypothesis import given
from hypothesis import strategies as st

from minigpt.evaluation.score import score, token_losses
from minigpt.generation.generate import window_start
from minigpt.generation.torch_backend import TorchBackend
from minigpt.tokenizer import BPETokenizer, CharTokenizer


def untrained(tokenizer) -> TorchBackend:
    torch.manual_seed(0)
    model = build_model(
        tokenizer.vocab_size, d_model=16, num_heads=2, num_layers=1, d_ff=32, max_seq_len=12
    )
    return TorchBackend(model.eval(), tokenizer)


def bpe() -> BPETokenizer:
    tokenizer = BPETokenizer(270, "NFC")
    tokenizer.build_vocab(["ab ab\n\n\n🦊 ab\n"] * 4)
    return tokenizer


BACKENDS = [
    untrained(CharTokenizer("ab \n", "NFC")),
    untrained(CharTokenizer("ab ")),
    untrained(bpe()),
]


@given(st.text("abé \n🦊", max_size=60), st.sampled_from(BACKENDS))
def test_line_scores_sum_to_the_total(text, backend):
    whole, lines = score(backend, text)
    assert len(lines) == text.count("\n") + 1
    assert [line.characters for line in lines] == [
        len(line) for line in text.splitlines(keepends=True)
    ] or (sum(line.characters for line in lines) == len(text))
    assert (
        sum(line.tokens for line in lines)
        == whole.tokens
        == len(backend.tokenizer.encode(text)) - 1
    )
    assert sum(line.nats for line in lines) == pytest.approx(whole.nats)


def test_scoring_uses_the_context_window_of_generation():
    backend = BACKENDS[0]
    ids = backend.tokenizer.encode_array("ab ba\n" * 9)
    expected = []
    for position in range(1, len(ids)):
        window = torch.from_numpy(ids[window_start(position, 12) : position])
        expected.append(-backend.model(window[None])[0, -1].log_softmax(-1)[ids[position]].item())
    np.testing.assert_allclose(token_losses(backend, ids), expected, atol=1e-5)


def test_score_figures_follow_their_definitions():
    whole, (line,) = score(BACKENDS[0], "abba")
    figures = whole.figures()
    assert whole == line
    assert (figures["tokens"], figures["characters"]) == (5, 4)  # tokens include <eos>
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert figures["bits_per_char"] == pytest.approx(figures["loss"] * 5 / 4 / math.log(2))
    assert score(BACKENDS[0], "")[0].figures()["bits_per_char"] is None
