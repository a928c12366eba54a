import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, build_model, model_metadata, randomize
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.generation.engine import Text, generate, generate_ids, window_start, write
from minigpt.generation.sampling import Sampling, gumbel_noise, next_tokens
from minigpt.generation.torch_backend import TorchBackend
from minigpt.model.checkpoint import save
from minigpt.tokenizer import EOS, BPETokenizer, CharTokenizer

GREEDY = Sampling(temperature=0)


class Uncached:
    """The slowest honest way: for each token the whole window, read anew."""

    def __init__(self, backend: TorchBackend):
        self.backend, self.tokenizer, self.max_seq_len = (
            backend,
            backend.tokenizer,
            backend.max_seq_len,
        )

    def generate(self, prompt: str, count: int, sampling: Sampling, sample: int) -> list[int]:
        ids = self.tokenizer.encode(prompt)[:-1]
        first = len(ids)
        while len(ids) < first + count and ids[-1:] != [EOS]:
            window = ids[window_start(len(ids), self.max_seq_len) :]
            logits = self.backend.new_cache(1).prefill(0, np.array(window), 0)[-1]
            noise = gumbel_noise(sampling.seed, sample, len(ids), self.tokenizer.vocab_size)
            ids += next_tokens(logits[None], noise, sampling, [ids])
        return ids[first:]


@pytest.fixture(
    scope="module", params=[ARCHITECTURES[0], ARCHITECTURES[-1]], ids=["classic", "fast"]
)
def untrained(request, tokenizer) -> TorchBackend:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "num_heads": 2, "num_layers": 2, "d_ff": 64, "max_seq_len": 12}
    model = build_model(tokenizer.vocab_size, **sizes, **request.param)
    return TorchBackend(randomize(model).eval(), tokenizer)


@pytest.mark.parametrize("switches", ARCHITECTURES, ids=str)
def test_a_loaded_model_computes_the_same(switches, tokenizer, tmp_path):
    sizes = {"d_model": 32, "num_heads": 2, "num_layers": 2, "d_ff": 64, "max_seq_len": 12}
    model = randomize(build_model(**sizes, **switches))
    path = tmp_path / "model.safetensors"
    save(path, model.state_dict(), model_metadata(model, tokenizer))
    loaded = TorchBackend.load(path)
    ids = torch.randint(4, 40, (1, 12))
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids), model(ids))
    written = [
        list(generate_ids(backend, "the", 30))
        for backend in (loaded, TorchBackend(model, tokenizer))
    ]
    assert written[0] == written[1]


def test_the_trained_model_knows_the_fox(trained):
    assert (
        "".join(generate(trained, "The quick brown", sampling=GREEDY))
        == " fox jumps over the lazy dog."
    )
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
        generate(untrained, "a", 0)
    with pytest.raises(UserError, match="stop: must not be empty"):
        generate(untrained, "a", stop=[".", ""])


@given(
    st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3),
    st.text("ab ", max_size=30),
    st.integers(1, 30),
)
def test_a_text_ends_before_the_first_stop_string(stop, written, max_new_tokens):
    """Whatever the pieces: nothing is shown that is taken back, nothing kept back that can be shown."""
    tokenizer = CharTokenizer("ab ")
    text = Text(tokenizer, "a", stop=stop, max_new_tokens=max_new_tokens)
    shown = ""
    for count, token in enumerate(
        tokenizer.encode(written, add_special_tokens=False)[:max_new_tokens], start=1
    ):
        shown += text.add(token, np.zeros(7))
        sofar = written[:count]
        found = [sofar.index(string) for string in stop if string in sofar]
        if found:
            assert (text.stopped, shown) == ("stop", sofar[: min(found)])
            break
        may_begin = max(
            [n for string in stop for n in range(len(string)) if sofar.endswith(string[:n])],
            default=0,
        )
        assert shown == (sofar if text.stopped else sofar[: count - may_begin])
        assert text.stopped == ("length" if count == max_new_tokens else None)
    assert text.text == shown


def test_a_stop_string_may_begin_within_a_subword_and_a_character():
    tokenizer = BPETokenizer(280)
    tokenizer.build_vocab(["the fox 🦊 and the fox 🦊"] * 3)
    ids = tokenizer.encode("the fox 🦊 and", add_special_tokens=False)
    for stop, expected in (("ox", "the f"), ("🦊", "the fox "), ("x 🦊 a", "the fo")):
        text = Text(tokenizer, "", stop=[stop])
        assert (
            "".join(text.add(token, np.zeros(1)) for token in ids if not text.stopped) == expected
        )


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.5, seed=4),
        Sampling(seed=1, repetition_penalty=1.5, top_p=0.9),
        Sampling(0, min_p=0.1),
    ],
    ids=str,
)
def test_texts_in_a_batch_are_what_each_is_alone(untrained, sampling, monkeypatch):
    monkeypatch.setattr(untrained, "max_batch_size", 3)
    prompts = [
        "",
        "the",
        "a prompt that is longer than the window of twelve",
        "fox",
        "The quick brown fox",
    ]
    texts = [
        Text(untrained.tokenizer, prompt, sample, 10 + 7 * sample)
        for prompt in prompts
        for sample in range(2)
    ]
    for _ in write(untrained, texts, sampling):
        pass
    for text in texts:
        alone = Uncached(untrained).generate(
            text.prompt, 10 + 7 * text.sample, sampling, text.sample
        )
        assert text.written == alone
        assert text.stopped == ("eos" if alone[-1] == EOS else "length")


def test_ignore_eos_writes_on(trained):
    text = "".join(generate(trained, "The quick brown", 60, Sampling(0, ignore_eos=True)))
    assert text.startswith(" fox jumps over the lazy dog.")
    assert len(text) == 60


def test_log_probabilities_are_those_of_the_whole_text(untrained):
    sampling = Sampling(temperature=2.0, top_k=3, repetition_penalty=2.0, ignore_eos=True)
    text = Text(untrained.tokenizer, "the", max_new_tokens=9, logprobs=True)
    for _ in write(untrained, [text], sampling):
        pass
    logits = torch.from_numpy(untrained.new_cache(1).prefill(0, np.array(text.ids[:-1]), 0))
    expected = logits.log_softmax(-1)[torch.arange(3, 12), text.written]
    np.testing.assert_allclose(text.logprobs, expected, atol=1e-5)
