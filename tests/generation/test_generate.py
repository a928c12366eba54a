import pytest
from conftest import engine_ids
from hypothesis import given
from hypothesis import strategies as st

from minigpt.generation.engine import generate
from minigpt.generation.generate import generate_ids, window_start
from minigpt.generation.sampling import Sampling
from minigpt.tokenizer import EOS

GREEDY = Sampling(temperature=0)


def test_a_trained_model_completes_a_sentence(trained):
    *ids, last = generate_ids(trained, "The quick brown", sampling=GREEDY)
    assert trained.tokenizer.decode(ids) == " fox jumps over the lazy dog."
    assert last == EOS


def test_generation_ends_after_max_new_tokens(trained):
    assert len(list(generate_ids(trained, "The quick brown", 5, GREEDY))) == 5


@given(st.integers(1, 3000), st.integers(1, 300))
def test_a_window_has_at_least_half_the_context(position, max_seq_len):
    start = window_start(position, max_seq_len)
    assert 0 < position - start <= max_seq_len
    assert start <= window_start(position + 1, max_seq_len)
    if position <= max_seq_len:
        assert start == 0
    else:
        assert position - start > max_seq_len - max(1, max_seq_len // 2)


def test_a_text_split_in_two_continues_the_same(trained):
    sampling = Sampling(seed=1, temperature=2.0, ignore_eos=True)
    whole = "".join(generate(trained, "the", 40, sampling))
    assert "".join(generate(trained, "the" + whole[:15], 25, sampling)) == whole[15:]


def test_samples_of_one_seed_differ(trained):
    sampling = Sampling(seed=2, temperature=2.0)
    texts = [tuple(engine_ids(trained, "a", 30, sampling, sample)) for sample in range(4)]
    assert len(set(texts)) == 4


@pytest.mark.parametrize("sample", [0, 3])
def test_a_seed_gives_the_same_text_again(trained, sample):
    sampling = Sampling(seed=2, temperature=2.0)
    once, again = (list(generate_ids(trained, "a", 30, sampling, sample)) for _ in range(2))
    assert once == again
