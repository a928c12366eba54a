import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigpt.backends.torch import TorchBackend
from minigpt.errors import UserError
from minigpt.inference import generate, generate_ids, window_start
from minigpt.model import MiniGPT
from minigpt.sampling import Sampling, gumbel_noise, next_tokens
from minigpt.tokenizer import EOS

GREEDY = Sampling(temperature=0)


class Uncached:
    """The slowest honest way: for each token the whole window, read anew."""

    def __init__(self, backend: TorchBackend):
        self.backend, self.tokenizer, self.max_seq_len = backend, backend.tokenizer, backend.max_seq_len

    def generate(self, prompt: str, count: int, sampling: Sampling, sample: int) -> list[int]:
        ids = self.tokenizer.encode(prompt)[:-1]
        first = len(ids)
        while len(ids) < first + count and ids[-1:] != [EOS]:
            window = ids[window_start(len(ids), self.max_seq_len) :]
            logits = self.backend.memory(1).read(0, np.array(window), 0)[-1:]
            noise = gumbel_noise(sampling.seed, sample, len(ids), self.tokenizer.vocab_size)
            seen = np.isin(np.arange(self.tokenizer.vocab_size), ids)[None]
            ids += next_tokens(logits, noise, sampling, seen).tolist()
        return ids[first:]


@pytest.fixture(scope="module")
def untrained(tokenizer) -> TorchBackend:
    torch.manual_seed(0)
    model = MiniGPT(tokenizer.vocab_size, d_model=32, num_heads=2, num_layers=2, d_ff=64, max_seq_len=12)
    return TorchBackend(model.eval(), tokenizer)


def test_the_trained_model_knows_the_fox(trained):
    assert "".join(generate(trained, "The quick brown", sampling=GREEDY)) == " fox jumps over the lazy dog."
    *_, last = generate_ids(trained, "The quick brown", sampling=GREEDY)
    assert last == EOS


@given(st.integers(1, 3000), st.integers(1, 300))
def test_the_window_is_never_empty_nor_longer_than_the_context(position, max_seq_len):
    start = window_start(position, max_seq_len)
    assert 0 < position - start <= max_seq_len
    assert start <= window_start(position + 1, max_seq_len)
    if position <= max_seq_len:
        assert start == 0
    else:
        assert position - start > max_seq_len - max(1, max_seq_len // 2)


@pytest.mark.parametrize("prompt", ["", "the", "a prompt that is longer than the window of twelve"])
def test_past_the_context_text_equals_the_uncached_path(untrained, prompt):
    sampling = Sampling(seed=3)
    text = list(generate_ids(untrained, prompt, 60, sampling, sample=1))
    assert text == Uncached(untrained).generate(prompt, 60, sampling, sample=1)


def test_going_on_from_a_text_gives_what_one_run_gives(untrained):
    whole = "".join(generate(untrained, "the", 40, Sampling(seed=1)))
    assert "".join(generate(untrained, "the" + whole[:15], 25, Sampling(seed=1))) == whole[15:]


def test_samples_of_one_seed_differ_and_stand_alone(untrained):
    texts = ["".join(generate(untrained, "a", 30, Sampling(seed=2), sample)) for sample in range(4)]
    assert len(set(texts)) == 4
    assert texts[2] == "".join(generate(untrained, "a", 30, Sampling(seed=2), 2))


def test_no_tokens_is_refused(untrained):
    with pytest.raises(UserError, match="max-new-tokens: must be 1 or more, but it is 0"):
        next(generate(untrained, "a", 0))
