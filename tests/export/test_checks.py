"""Compare exported models with PyTorch: logits, losses and generated text."""

import random
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import (
    ARCHITECTURES,
    build_model,
    engine_ids,
    mean_loss,
    model_metadata,
    randomize,
    train_config,
)

from minigpt.common.errors import UserError
from minigpt.corpus.corpus import Document
from minigpt.corpus.encode import encode_corpus
from minigpt.data.batches import Batches
from minigpt.data.token_files import SplitInfo, Tokens
from minigpt.evaluation.evaluate import predict, summarize
from minigpt.export.checks import (
    batch_changes_logits,
    check_batches,
    check_parity,
    check_quality,
    compared_lengths,
    logits_of,
    max_logit_difference,
)
from minigpt.export.int8 import BLOCK_SIZE
from minigpt.export.onnx_graph import to_onnx
from minigpt.generation.engine import generate, run
from minigpt.generation.generate import window_start
from minigpt.generation.onnx_backend import OnnxBackend, OnnxKVCache
from minigpt.generation.sampling import Sampling
from minigpt.generation.sequence import Sequence
from minigpt.generation.torch_backend import TorchBackend
from minigpt.tokenizer import BPETokenizer
from minigpt.training.ngram import build_ngram_table
from minigpt.training.train import Trainer

METADATA = {"training": {"val/loss": 1.0}}


@pytest.fixture(scope="module")
def onnx_file(trained, tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    metadata = model_metadata(trained.model, tokenizer, **METADATA)
    path.write_bytes(to_onnx(trained.model, metadata))
    return path


@pytest.fixture(scope="module")
def exported(onnx_file) -> OnnxBackend:
    return OnnxBackend(onnx_file)


def test_logits_match_pytorch(trained, exported):
    assert max_logit_difference(trained, exported) < 1e-4


@pytest.mark.parametrize("max_seq_len", [1, 2, 8, 65536])
def test_compared_lengths_include_the_edges(max_seq_len):
    lengths = compared_lengths(max_seq_len, np.random.default_rng(0))
    assert {1, max_seq_len} <= set(lengths) <= set(range(1, max_seq_len + 1))
    assert len(lengths) <= 23


@pytest.mark.parametrize("switches", ARCHITECTURES[1:], ids=str)
def test_every_architecture_generates_the_same_text(tokenizer, tmp_path, switches):
    torch.manual_seed(0)
    sizes = {"d_model": 32, "num_heads": 2, "num_layers": 2, "d_ff": 64, "max_seq_len": 16}
    model = randomize(build_model(**sizes, **switches))
    torch_backend = TorchBackend(model, tokenizer)
    path = tmp_path / "model.onnx"
    path.write_bytes(to_onnx(model, model_metadata(model, tokenizer)))
    onnx_backend = OnnxBackend(path)
    assert max_logit_difference(torch_backend, onnx_backend) < 1e-4
    for seed in range(5):  # longer than the context, so the window slides
        theirs, ours = (
            engine_ids(backend, "the", 60, Sampling(seed=seed))
            for backend in (torch_backend, onnx_backend)
        )
        assert theirs == ours


def test_wrong_logits_fail_the_parity_check(trained, exported, monkeypatch):
    def slightly_off(cache, ids, cached_lengths, decode=OnnxKVCache.decode):
        logits = decode(cache, ids, cached_lengths)
        logits[-1, 7] += 1e-3
        return logits

    monkeypatch.setattr(OnnxKVCache, "decode", slightly_off)
    difference = max_logit_difference(trained, exported)
    assert difference == pytest.approx(1e-3, rel=0.05)
    with pytest.raises(
        UserError, match=r"export\.tolerance: the ONNX model's logits differ .* by 0\.001"
    ):
        check_parity(difference, 1e-4)


def test_nan_logits_have_an_infinite_difference(trained, exported, monkeypatch):
    monkeypatch.setattr(
        OnnxKVCache, "decode", lambda cache, ids, cached_lengths: np.full((len(ids), 40), np.nan)
    )
    assert max_logit_difference(trained, exported) == float("inf")


def test_onnx_loss_matches_pytorch(trained, exported, sentences):
    ids = np.concatenate([trained.tokenizer.encode_array(text) for text in sentences])
    for layout in ("packed", "padded"):
        batches = Batches(ids, layout, 4, 64)
        loss = predict(partial(logits_of, exported), batches)["loss"].mean()
        assert loss == pytest.approx(mean_loss(trained.model, batches), abs=1e-5)


def test_nan_logits_fail_the_quality_check(exported, sentences):
    ids = np.concatenate([exported.tokenizer.encode_array(text) for text in sentences])

    def broken(input_ids):
        logits = logits_of(exported, input_ids)
        logits[:, ::2] = np.nan
        return logits

    split = SplitInfo(1, len(ids), len(ids), len(ids), 0, "")
    figures = summarize(predict(broken, Batches(ids, "packed", 4, 64)), split)
    with pytest.raises(UserError, match="quantized"):
        check_quality(figures["bits_per_char"], 2.0, 0.01)


def test_excessive_quality_loss_is_rejected():
    check_quality(1.005, 1.0, 0.01)
    expected = (
        r"quantize\.max_quality_loss: .* 1\.0200 bits per character instead of 1\.0000, 2\.00% more"
    )
    with pytest.raises(UserError, match=expected):
        check_quality(1.02, 1.0, 0.01)
    with pytest.raises(UserError, match=r"quantize\.max_quality_loss"):
        check_quality(float("nan"), 1.0, 0.01)


def test_both_backends_generate_the_same_text(trained, exported, sentences, full):
    """Accept different tokens only if their scores are closer than the logit error allows."""
    rng = random.Random(0)
    error = max_logit_difference(trained, exported)
    text = " ".join(sentences)
    for seed in range(1000 if full else 200):
        start = rng.randrange(len(text))
        prompt = text[start : start + rng.randrange(40)]
        sampling = Sampling(
            temperature=rng.choice([0.0, 0.8, 1.5]), top_k=rng.choice([3, 50]), seed=seed
        )
        ours = engine_ids(trained, prompt, 100, sampling)
        theirs = engine_ids(exported, prompt, 100, sampling)
        if ours != theirs:
            assert _gap_at_first_difference(trained, prompt, ours, theirs, sampling) <= 2 * error


def _gap_at_first_difference(backend, prompt, ours, theirs, sampling) -> float:
    from minigpt.generation.sampling import gumbel_noise

    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    ids = backend.tokenizer.encode(prompt)[:-1] + ours[:at]
    window = np.array(ids[window_start(len(ids), backend.max_seq_len) :])
    logits = backend.new_cache(1).prefill(0, window, 0)[-1]
    if sampling.temperature:
        logits = (
            logits + sampling.temperature * gumbel_noise(sampling.seed, 0, len(ids), len(logits))[0]
        )
    return abs(float(logits[ours[at]] - logits[theirs[at]]))


def test_onnx_file_is_self_contained(onnx_file, tmp_path, tokenizer):
    moved = tmp_path / "elsewhere.onnx"
    moved.write_bytes(onnx_file.read_bytes())
    backend = OnnxBackend(moved)
    assert backend.tokenizer.characters == tokenizer.characters
    assert backend.metadata["training"] == METADATA["training"]
    assert backend.max_seq_len == 64
    assert str(Path.cwd()).encode() not in onnx_file.read_bytes()
    assert b"site-packages" not in onnx_file.read_bytes()


def test_equal_models_give_equal_bytes(trained, onnx_file, exported):
    assert to_onnx(trained.model, exported.metadata) == onnx_file.read_bytes()


def test_external_weights_are_rejected(onnx_file, tmp_path):
    path = tmp_path / "external.onnx"
    model = onnx.load(onnx_file)
    del model.metadata_props[1:]  # the digest
    onnx.save_model(
        model, path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    assert (tmp_path / "weights.bin").exists()
    with pytest.raises(
        UserError,
        match=r"external\.onnx: not a model that can be run: its weights are in another file",
    ):
        OnnxBackend(path)


def test_invalid_onnx_files_are_rejected(tmp_path, onnx_file):
    with pytest.raises(UserError, match=r"none\.onnx: cannot be read: No such file"):
        OnnxBackend(tmp_path / "none.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    (tmp_path / "cut.onnx").write_bytes(onnx_file.read_bytes()[:-5000])
    for name in ("junk.onnx", "cut.onnx"):
        with pytest.raises(UserError, match=rf"{name}: not a model that can be run: damaged"):
            OnnxBackend(tmp_path / name)
    foreign = onnx.load(onnx_file)
    for metadata in (
        {},
        {"minigpt": "{"},
        {"minigpt": "[]"},
        {"minigpt": '{"tokenizer": {}, "config": {}}'},
    ):
        onnx.helper.set_model_props(foreign, metadata)
        onnx.save_model(foreign, tmp_path / "foreign.onnx")
        with pytest.raises(
            UserError,
            match=r"foreign\.onnx: an ONNX file, but not one that this version of MiniGPT",
        ):
            OnnxBackend(tmp_path / "foreign.onnx")


def test_bpe_model_generates_the_same_text_in_both_backends(tmp_path):
    documents = [
        "naïve café 🦊, said the 🦊.",
        "The naïve 🦊 went to the café.",
        "Ein 🦊 im Café? Très naïve!",
    ]
    tokenizer = BPETokenizer(300, "NFC")
    tokenizer.build_vocab(documents)
    training = [Document(text, "train") for text in documents]
    encode_corpus(training, tokenizer, tmp_path, tmp_path / "documents.parquet")
    tokens = Tokens(tmp_path, tokenizer)
    assert tokens.ids["train"].dtype == np.uint16
    assert tokenizer.decode(tokens.ids["train"].tolist()) == "".join(documents)

    sizes = {"d_model": 32, "num_heads": 2, "num_layers": 1, "d_ff": 64, "max_seq_len": 64}
    torch.manual_seed(0)
    model = build_model(tokenizer.vocab_size, **sizes)
    batches = Batches(tokens.ids["train"], "padded", 3, 64)
    config = train_config(
        layout="padded", batch_size=3, max_steps=80, learning_rate=1e-2, eval_interval=40
    )
    Trainer(model, batches, batches, config).run()
    ours = TorchBackend(model.eval(), tokenizer)
    path = tmp_path / "model.onnx"
    path.write_bytes(to_onnx(model, model_metadata(model, tokenizer)))
    theirs = OnnxBackend(path)
    assert theirs.tokenizer.sha256() == tokenizer.sha256()

    greedy = Sampling(temperature=0)
    for backend in (ours, theirs):
        assert "".join(generate(backend, "nai\u0308ve café", 60, greedy)) == " 🦊, said the 🦊."
    for seed in range(5):  # a high temperature yields invalid UTF-8
        sampling = Sampling(temperature=3.0, top_k=1000, seed=seed)
        ids = engine_ids(theirs, "", 40, sampling)
        assert "".join(generate(ours, "", 40, sampling)) == tokenizer.decode(ids)


@pytest.fixture(scope="module")
def int8_models(trained, tokenizer, sentences, tmp_path_factory) -> dict[int, OnnxBackend]:
    """Return quantized models with a draft table, by the size of their blocks."""
    ids = np.concatenate([tokenizer.encode_array(text) for text in sentences])
    table = build_ngram_table(ids, tokenizer.vocab_size).to_text()
    torch.manual_seed(0)
    model = randomize(build_model(tokenizer.vocab_size, num_layers=2, max_seq_len=64))
    models = {}
    for block_size in (BLOCK_SIZE, 128):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("minigpt.export.int8.BLOCK_SIZE", block_size)
            patch.setattr("minigpt.export.onnx_graph.BLOCK_SIZE", block_size)
            quantization = {"type": "int8", "block_size": block_size}
            metadata = model_metadata(
                model, tokenizer, ngram_table=table, quantization=quantization
            )
            path = tmp_path_factory.mktemp("int8") / "model.onnx"
            path.write_bytes(to_onnx(model, metadata, "int8"))
            models[block_size] = OnnxBackend(path)
    return models


@pytest.mark.parametrize("block_size", [BLOCK_SIZE, 128])
def test_int8_text_is_the_same_alone_as_in_a_batch(int8_models, block_size):
    backend, sampling = int8_models[block_size], Sampling(temperature=2, ignore_eos=True)
    sequences = [Sequence(backend.tokenizer, "the", sampling, sample, 150) for sample in range(6)]
    for _ in run(backend, sequences):
        pass
    for sample, sequence in enumerate(sequences):
        assert sequence.generated == engine_ids(backend, "the", 150, sampling, sample)
        assert sequence.drafted == 0


def test_larger_int8_blocks_fail_the_check_of_batches(int8_models, monkeypatch):
    assert not batch_changes_logits(int8_models[BLOCK_SIZE])
    monkeypatch.setattr(int8_models[128], "max_batch_size", 6)
    if batch_changes_logits(int8_models[128]):  # depends on the processor
        with pytest.raises(UserError, match=r"export\.quantize: .* in a batch than alone"):
            check_batches(int8_models[128])
