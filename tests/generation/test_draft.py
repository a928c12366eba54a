"""The table of guesses against a plain n-gram model, and speculative decoding against plain decoding."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from conftest import model_metadata
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.data import ngram_table as draft_module
from minigpt.data.ngram_table import CONTEXT, STEP, Draft, build_draft
from minigpt.export.onnx_graph import to_onnx
from minigpt.generation.backend import Backend
from minigpt.generation.engine import generate_ids
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling, gumbel_noise
from minigpt.generation.torch_backend import TorchBackend
from minigpt.model.checkpoint import save
from minigpt.tokenizer import EOS

V = 7


def counted(ids: list[int]) -> dict[tuple, Counter]:
    """What follows each context of up to CONTEXT tokens."""
    following = defaultdict(Counter)
    for i, token in enumerate(ids):
        for length in range(min(i, CONTEXT) + 1):
            following[tuple(ids[i - length : i])][token] += 1
    return following


def probabilities(context: tuple, following: dict[tuple, Counter]) -> np.ndarray:
    """Interpolated as Witten and Bell do, down to single tokens, each of which was seen once more."""
    found = np.array([following[context][token] for token in range(V)], dtype=float)
    if not context:
        return (found + 1) / (found.sum() + V)
    kinds = np.count_nonzero(found)
    return (found + kinds * probabilities(context[1:], following)) / (found.sum() + kinds)


@given(
    st.lists(st.integers(0, V - 1), min_size=1, max_size=60),
    st.lists(st.integers(0, V - 1), max_size=30),
)
def test_the_table_is_an_n_gram_model(ids, text):
    table = build_draft(np.array(ids), V)
    following = counted(ids)
    row = 0
    for i, token in enumerate(text):
        row = table.following[row, token]
        # the longest end of what came so far that the training text has
        contexts = [
            tuple(text[max(0, i + 1 - length) : i + 1]) for length in range(CONTEXT, -1, -1)
        ]
        context = next(context for context in contexts if context in following)
        expected = np.log(probabilities(context, following))
        np.testing.assert_allclose(table.log_probs[row], expected, atol=0.51 * STEP)


def test_only_the_commonest_contexts_are_kept(monkeypatch):
    rng = np.random.default_rng(0)
    ids = rng.choice(V, 5000, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.03, 0.02])
    monkeypatch.setattr(draft_module, "BYTES", 3 * V * 100)
    table = build_draft(ids, V)
    assert 90 <= len(table.log_probs) <= 100
    occurrences = sorted(
        (followed.total() for followed in counted(ids.tolist()).values()), reverse=True
    )
    most, least = np.exp(table.log_probs[[0, -1]])
    np.testing.assert_allclose(most, np.bincount(ids) / 5000, atol=0.02)
    assert occurrences[99] > 20
    assert least.sum() == pytest.approx(1, abs=0.05)


def test_a_guess_uses_the_noise_of_the_choice():
    table = build_draft(np.array([4, 5, 4, 6] * 50), V)
    noise = gumbel_noise(0, 0, 1, V, 1000)
    guesses = Counter(table.guess([4], noise[[i]], 1.0)[0] for i in range(1000))
    assert guesses[5] == pytest.approx(500, abs=60)
    assert guesses[6] == pytest.approx(500, abs=60)
    assert table.guess([6], np.zeros((3, V)), 0)[0] == 4
    assert table.guess([4], noise[:1], 1e300) == [noise[0].argmax()]
    ends = build_draft(np.array([4, EOS] * 20), V)
    assert ends.guess([4], np.zeros((5, V)), 0) == [EOS]


def test_a_table_survives_the_file_and_damage_is_noticed():
    table = build_draft(np.arange(4, 7).repeat(9), V)
    text = table.to_text()
    for name in ("log_probs", "following"):
        np.testing.assert_array_equal(getattr(Draft.from_text(text, V), name), getattr(table, name))
    for damaged in ("", "A", text[:-4], text[:-8] + "////" + text[-4:]):
        with pytest.raises(ValueError, match=r"."):
            Draft.from_text(damaged, V)


@pytest.fixture(scope="module", params=["onnx", "torch"])
def speculating(request, trained, tokenizer, sentences, tmp_path_factory) -> Backend:
    ids = np.concatenate([tokenizer.encode_array(text) for text in sentences])
    draft = build_draft(ids, tokenizer.vocab_size).to_text()
    metadata = {"config": {"max_seq_len": 64}, "tokenizer": tokenizer.to_dict(), "draft": draft}
    if request.param == "torch":
        return TorchBackend(trained.model, tokenizer, metadata)
    path = tmp_path_factory.mktemp("draft") / "model.onnx"
    path.write_bytes(to_onnx(trained.model, metadata))
    return OnnxBackend(path)


def test_a_checkpoint_with_a_damaged_table_is_named(trained, tokenizer, tmp_path):
    for draft in (5, None, "A"):
        metadata = model_metadata(trained.model, tokenizer, draft=draft)
        save(tmp_path / "model.safetensors", trained.model.state_dict(), metadata)
        with pytest.raises(UserError, match="not a model of this version of MiniGPT"):
            TorchBackend.load(tmp_path / "model.safetensors")


def test_speculation_changes_nothing(speculating, monkeypatch, full):
    table, rng = speculating.draft, np.random.default_rng(0)
    nonsense = Draft(rng.normal(size=(50, 40)), rng.integers(50, size=(50, 40)))
    runs: list[int] = []
    saved = []
    memory = type(speculating.new_cache(1))
    read = memory.prefill
    monkeypatch.setattr(memory, "prefill", lambda *args: runs.append(1) or read(*args))
    for seed in range(1000 if full else 30):
        sampling = Sampling(
            *([0.0, 0.8, 1.5][seed % 3], [50, 5][seed % 2], 1.0, 0.0, [1.0, 1.2][seed % 4 == 0]),
            ignore_eos=seed % 5 > 0,
            seed=seed,
        )
        texts, counts = [], []
        for speculating.draft in (None, table, nonsense):
            runs.clear()
            texts.append(list(generate_ids(speculating, "The", 150, sampling)))
            counts.append(len(runs))
        assert texts[0] == texts[1] == texts[2]
        assert counts[0] == len(texts[0])
        saved.append(1 - counts[1] / counts[0])
    assert np.mean(saved) > 0.2
    speculating.draft = table
