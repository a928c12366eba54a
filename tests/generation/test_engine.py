"""The engine against the plain loop of `generate.py`: the same text from batches and drafts."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAST, GPT2, build_model, engine_ids, model_metadata, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampling import LOGITS, SAMPLINGS

from minigpt.common.errors import UserError
from minigpt.export.int8 import BLOCK_SIZE
from minigpt.export.onnx_graph import build_proto, serialize, to_onnx
from minigpt.generation.backend import Backend
from minigpt.generation.choose import choose_from_many, choose_token
from minigpt.generation.engine import Engine, generate, run
from minigpt.generation.generate import generate_ids
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling, gumbel_noise, next_token, uniform_noise
from minigpt.generation.sequence import Logprobs, Sequence
from minigpt.generation.torch_backend import TorchBackend
from minigpt.tokenizer import EOS
from minigpt.training.ngram import build_ngram_table

PROMPTS = ["", "the", "a prompt that is longer than the window of twelve", "fox"]
CHUNK = 5


@pytest.fixture(autouse=True, scope="module")
def short_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minigpt.generation.generate.PREFILL_CHUNK", CHUNK)
        patch.setattr("minigpt.generation.engine.PREFILL_CHUNK", CHUNK)
        yield


@pytest.fixture(scope="module", params=[{}, FAST, GPT2], ids=["classic", "fast", "gpt2"])
def untrained(request, tokenizer) -> TorchBackend:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "num_heads": 2, "num_layers": 2, "d_ff": 64, "max_seq_len": 12}
    model = build_model(tokenizer.vocab_size, **sizes, **request.param)
    return TorchBackend(randomize(model), tokenizer)


@pytest.fixture(scope="module", params=["onnx", "torch"])
def drafting(request, trained, tokenizer, sentences, tmp_path_factory) -> Backend:
    """Return a trained model with an n-gram table."""
    ids = np.concatenate([tokenizer.encode_array(text) for text in sentences])
    table = build_ngram_table(ids, tokenizer.vocab_size).to_text()
    metadata = model_metadata(trained.model, tokenizer, ngram_table=table)
    if request.param == "torch":
        return TorchBackend(trained.model, tokenizer, metadata)
    path = tmp_path_factory.mktemp("draft") / "model.onnx"
    path.write_bytes(to_onnx(trained.model, metadata))
    return OnnxBackend(path)


@pytest.fixture(scope="module")
def quantized(tokenizer, tmp_path_factory) -> OnnxBackend:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "num_heads": 2, "num_layers": 2, "d_ff": 64, "max_seq_len": 64}
    model = randomize(build_model(tokenizer.vocab_size, **sizes))
    quantization = {"type": "int8", "block_size": BLOCK_SIZE}
    metadata = model_metadata(model, tokenizer, quantization=quantization)
    path = tmp_path_factory.mktemp("quantized") / "model.onnx"
    path.write_bytes(serialize(build_proto(model, "int8"), metadata))
    return OnnxBackend(path)


@given(LOGITS, SAMPLINGS, st.sets(st.integers(0, 59)))
def test_choose_token_equals_next_token(logits, sampling, seen):
    V = len(logits)
    context = [token for token in seen if token < V] * 2
    penalties = np.where(np.isin(np.arange(V), context), sampling.repetition_penalty, 1)
    noise = gumbel_noise(sampling.seed, 1, 7, V)[0]
    expected = next_token(logits, noise, sampling, context)
    assert choose_token(logits, noise, sampling, penalties) == expected
    uniform = uniform_noise(sampling.seed, 1, 7, V)[0]
    if sampling.top_k:
        assert choose_from_many(logits, uniform, sampling, penalties) == expected
    if sampling.repetition_penalty == 1:
        assert choose_token(logits, noise, sampling) == expected
        if sampling.top_k:
            assert choose_from_many(logits, uniform, sampling) == expected


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 3.0, 30.0]), st.integers(1, 300))
def test_large_vocabularies_are_sampled_alike(seed, spread, top_k):
    logits = np.random.default_rng(seed).normal(0, spread, 9000).astype(np.float32).round(1)
    sampling = Sampling(top_k=top_k, top_p=0.9, seed=seed)
    noise, uniform = (draw(seed, 0, 3, 9000)[0] for draw in (gumbel_noise, uniform_noise))
    assert choose_from_many(logits, uniform, sampling) == next_token(logits, noise, sampling)


def test_choose_token_ends_where_noise_decides():
    logits = np.random.default_rng(0).normal(size=200)
    sampling = Sampling(temperature=1000, top_k=0, min_p=1)  # keeps only the best of 200
    noise = gumbel_noise(0, 0, 0, 200)[0]
    assert choose_token(logits, noise, sampling) == logits[4:].argmax() + 4


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0), Sampling(min_p=0.5)], ids=str)
def test_choose_token_rejects_logits_that_are_not_finite(sampling, value):
    with pytest.raises(UserError, match="the model computes logits that are not finite"):
        choose_token(np.full(80, value), gumbel_noise(0, 0, 0, 80)[0], sampling, np.full(80, 2.0))
    with pytest.raises(UserError, match="the model computes logits that are not finite"):
        choose_from_many(np.full(80, value), np.zeros(80), sampling)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_cache_changes_no_text(untrained, prompt):
    sampling = Sampling(seed=3)
    expected = list(generate_ids(untrained, prompt, 60, sampling, sample=1))
    assert engine_ids(untrained, prompt, 60, sampling, sample=1) == expected


REQUESTS = st.builds(
    dict,
    prompt=st.sampled_from(PROMPTS),
    sampling=SAMPLINGS,
    sample=st.integers(0, 3),
    max_new_tokens=st.integers(1, 30),
)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(REQUESTS, st.integers(0, 9), st.integers(0, 40)), min_size=1, max_size=5),
    st.integers(1, 3),
)
def test_a_batch_changes_no_text(untrained, requests, batch_size):
    """Sequences join a batch at one step and are canceled at another, if they last that long."""
    engine, step = Engine(untrained, batch_size), 0
    sequences = [Sequence(untrained.tokenizer, **request) for request, _, _ in requests]
    while engine.unfinished or step < 10:
        for sequence, (_, joined, canceled) in zip(sequences, requests, strict=True):
            if step == joined:
                engine.add(sequence)
            if step == joined + canceled + 1:
                engine.cancel(sequence)
        engine.step()
        step += 1
    for sequence, (request, _, _) in zip(sequences, requests, strict=True):
        expected = list(generate_ids(untrained, **request))
        if sequence.finish_reason == "canceled":
            expected = expected[: len(sequence.generated)]
        else:
            assert sequence.finish_reason == ("eos" if expected[-1] == EOS else "length")
        assert sequence.generated == expected


class Recorder:
    """A backend that records which tokens it reads in one pass: their first position and number."""

    def __init__(self, backend: TorchBackend):
        self.backend, self.passes = backend, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def new_cache(self, batch_size: int) -> "Recorder":
        self.cache = self.backend.new_cache(batch_size)
        return self

    def prefill(self, row: int, ids: list[int], cached_length: int) -> np.ndarray:
        self.passes.append((cached_length, len(ids)))
        return self.cache.prefill(row, ids, cached_length)

    def decode(self, ids: np.ndarray, cached_lengths: np.ndarray) -> np.ndarray:
        return self.cache.decode(ids, cached_lengths)


def test_long_prompts_are_read_between_the_tokens_of_others(untrained):
    backend = Recorder(untrained)
    engine = Engine(backend, batch_size=2)
    short, long = (
        Sequence(untrained.tokenizer, prompt, Sampling(ignore_eos=True), max_new_tokens=20)
        for prompt in ("the", "the prompt")  # with <bos> 4 and 11 tokens, of a window of 12
    )
    engine.add(short)
    engine.step()
    engine.add(long)
    progress = []
    for _ in range(2):
        engine.step()
        progress.append((len(short.generated), len(long.generated)))
    assert backend.passes == [(0, 4), (0, 5), (5, 5)]
    # the pass that decodes both texts reads the last token of the prompt
    assert progress == [(2, 0), (3, 1)]


@pytest.mark.parametrize("joined", [0, 1, 7])
def test_a_batch_changes_no_text_of_a_quantized_model(quantized, joined):
    """Prompts have all remainders of a chunk, and the windows move."""
    prompts = ["x" * length for length in range(6)] * 2
    alone = [engine_ids(quantized, prompt, 80, Sampling(2.0)) for prompt in prompts]
    sequences = [
        Sequence(quantized.tokenizer, prompt, Sampling(2.0), max_new_tokens=80)
        for prompt in prompts
    ]
    engine = Engine(quantized)
    for sequence in sequences:
        engine.add(sequence)
        for _ in range(joined):
            engine.step()
    while engine.unfinished:
        engine.step()
    assert [sequence.generated for sequence in sequences] == alone


def test_a_canceled_sequence_frees_its_row(untrained):
    sampling = Sampling(ignore_eos=True)
    first, second = (Sequence(untrained.tokenizer, "the", sampling, i) for i in range(2))
    engine = Engine(untrained, batch_size=1)
    engine.add(first)
    engine.add(second)
    engine.step()
    assert (len(first.generated), len(second.generated)) == (1, 0)
    engine.cancel(first)
    engine.step()
    assert (first.finish_reason, len(first.generated), len(second.generated)) == ("canceled", 1, 1)


def test_a_waiting_sequence_can_be_canceled(untrained):
    engine = Engine(untrained)
    sequence = Sequence(untrained.tokenizer, "the")
    engine.add(sequence)
    engine.cancel(sequence)
    assert not engine.unfinished
    assert sequence.generated == []


def test_cancelling_a_finished_sequence_changes_nothing(trained):
    sequence = Sequence(trained.tokenizer, "the", max_new_tokens=1)
    engine = Engine(trained)
    engine.add(sequence)
    engine.step()
    engine.cancel(sequence)
    assert sequence.finish_reason == "length"


def test_run_yields_the_text_of_each_sequence(trained):
    sequences = [Sequence(trained.tokenizer, "the", Sampling(2.0, seed=seed)) for seed in range(9)]
    texts = {id(sequence): "" for sequence in sequences}
    for sequence, new_text in run(trained, sequences):
        texts[id(sequence)] += new_text
    assert [texts[id(sequence)] for sequence in sequences] == [each.text for each in sequences]


def test_ignore_eos_continues_past_the_end(trained):
    text = "".join(generate(trained, "The quick brown", 60, Sampling(0, ignore_eos=True)))
    assert text.startswith(" fox jumps over the lazy dog.")
    assert len(text) == 60


def test_logprobs_are_those_of_a_full_forward_pass(untrained):
    sampling = Sampling(temperature=2.0, top_k=3, repetition_penalty=2.0, ignore_eos=True)
    sequence = Sequence(untrained.tokenizer, "the", sampling, max_new_tokens=9, logprobs=Logprobs())
    for _ in run(untrained, [sequence]):
        pass
    logits = untrained.model(torch.tensor([sequence.ids[:-1]]))[0]  # (T, V)
    expected = logits.log_softmax(-1)[torch.arange(3, 12), sequence.generated]
    np.testing.assert_allclose(sequence.logprobs.tokens, expected.detach(), atol=1e-5)


def test_drafts_change_no_text_but_save_passes(drafting, monkeypatch, full):
    table, rng = drafting.ngram_table, np.random.default_rng(0)
    V = drafting.tokenizer.vocab_size
    wrong = build_ngram_table(rng.integers(4, V, size=2000), V)
    saved = []
    for seed in range(1000 if full else 30):
        sampling = Sampling(
            temperature=[0.0, 0.8, 1.5][seed % 3],
            top_k=[50, 5][seed % 2],
            repetition_penalty=[1.0, 1.2][seed % 4 == 0],
            ignore_eos=seed % 5 > 0,
            seed=seed,
        )
        sequences = []
        for draft_table in (None, table, wrong):
            monkeypatch.setattr(drafting, "ngram_table", draft_table)
            sequences.append(Sequence(drafting.tokenizer, "The", sampling, max_new_tokens=150))
            for _ in run(drafting, sequences[-1:]):
                pass
        plain, drafted, misled = sequences
        assert plain.generated == drafted.generated == misled.generated
        assert plain.forward_passes == len(plain.generated)
        saved.append(1 - drafted.forward_passes / plain.forward_passes)
    assert np.mean(saved) > 0.2


def test_drafting_stops_where_few_drafts_are_accepted(drafting, monkeypatch):
    V = drafting.tokenizer.vocab_size
    wrong = build_ngram_table(np.random.default_rng(0).integers(4, V, size=2000), V)
    monkeypatch.setattr(drafting, "ngram_table", wrong)
    sequence = Sequence(drafting.tokenizer, "The", Sampling(ignore_eos=True), max_new_tokens=150)
    for _ in run(drafting, [sequence]):
        pass
    assert 0 < sequence.drafted < 60
