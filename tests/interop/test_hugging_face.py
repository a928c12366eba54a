"""Folders of Hugging Face: equal to our models, in both directions, or refused."""

import json
import random
import re
import shlex
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import CONVERTED_GPT2, GPT2, ROOT, build_model, model_metadata, randomize
from typer.testing import CliRunner

from minigpt.cli.app import _run as run_app
from minigpt.cli.app import app
from minigpt.common.errors import UserError
from minigpt.data.token_files import Tokens, write_meta
from minigpt.evaluation.score import score
from minigpt.generation.engine import generate
from minigpt.generation.sampling import Sampling
from minigpt.generation.torch_backend import TorchBackend
from minigpt.interop import parity
from minigpt.interop.hugging_face import read_folder, write_folder
from minigpt.interop.tokenizer import from_transformers
from minigpt.model.checkpoint import load_model, save
from minigpt.tokenizer import BPETokenizer, CharTokenizer

pytest.importorskip("transformers", reason="the extra hf is not installed")

SIZES = {"d_model": 48, "num_heads": 3, "num_layers": 2, "d_ff": 80, "max_seq_len": 32}
TEXT = "It's the naïve 🦊 in the café, and the cat sat on the mat; 1,234 mice ran."
ALPHABET = [*"abc AB\n\t'.,<>|19", *"éßЖЩאبहक你好あ한", "e\u0301", "\u00a0", "\u2028", "🦊", "\x00",
            "<|endoftext|>", "<bos>", "'ll", "  "]  # fmt: skip


@pytest.fixture(scope="module")
def char() -> CharTokenizer:
    return CharTokenizer(set(TEXT) | set("<>ebosΣσ"), "NFC", lowercase=True)


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    tokenizer = BPETokenizer(400, "NFKC")
    tokenizer.build_vocab([TEXT] * 20)
    return tokenizer


@pytest.fixture(scope="module")
def gpt2_bpe() -> BPETokenizer:
    tokenizer = BPETokenizer(400)
    tokenizer.build_vocab([TEXT] * 20)
    return tokenizer


def write_model(path, tokenizer, **switches):
    torch.manual_seed(0)
    model = randomize(build_model(tokenizer.vocab_size, **SIZES, **switches))
    save(path, model.state_dict(), model_metadata(model, tokenizer, parameters=1))
    return model


def load_with_transformers(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(ALPHABET, k=rng.randint(0, 30))) for _ in range(count)]


@pytest.fixture(scope="module")
def classic(tmp_path_factory, char):
    """Return the path of a model of the default architecture, and its folder."""
    path = tmp_path_factory.mktemp("classic") / "model.safetensors"
    write_model(path, char)
    write_folder(path, path.with_suffix(""))
    return path, path.with_suffix("")


@pytest.mark.parametrize("name", ["char", "bpe"])
def test_tokenizer_in_folder_gives_the_same_ids(request, tmp_path, name):
    tokenizer = request.getfixturevalue(name)
    write_model(tmp_path / "model.safetensors", tokenizer, head_bias=False)
    write_folder(tmp_path / "model.safetensors", tmp_path / "out")
    _, theirs = load_with_transformers(tmp_path / "out")
    for text in random_texts(300):
        assert theirs(text)["input_ids"] == tokenizer.encode(text)[:-1], text  # no <eos>


def test_folder_of_default_model_has_its_logits(classic):
    path, folder = classic
    ours, (theirs, _) = load_model(path)[0], load_with_transformers(folder)
    torch.manual_seed(0)
    ids = torch.randint(ours.token_embedding.num_embeddings, (2, 32))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(input_ids=ids).logits, ours(ids), atol=5e-6, rtol=0)


def test_transformers_generates_the_same_greedy_text(classic):
    path, folder = classic
    backend, (theirs, tokenizer) = TorchBackend.load(path), load_with_transformers(folder)
    inputs = tokenizer("the cat", return_tensors="pt")
    ids = theirs.generate(**inputs, max_new_tokens=20, do_sample=False)[0]
    expected = "".join(generate(backend, "the cat", 20, Sampling(temperature=0)))
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the cat" + expected


def test_default_model_has_equal_logits_after_the_round_trip(classic, tmp_path):
    path, folder = classic
    read_folder(folder, tmp_path / "back.safetensors")
    (model, old), (back, new) = load_model(path), load_model(tmp_path / "back.safetensors")
    assert new["tokenizer"] == old["tokenizer"]
    ids = torch.arange(30).unsqueeze(0)
    torch.testing.assert_close(back(ids), model(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "switches",
    [{"head_bias": False}, {"positional": "learned", "head_bias": False}, GPT2],
    ids=["no bias", "learned positions", "gpt2"],
)
def test_round_trip_of_our_model_gives_equal_tensors(tmp_path, bpe, switches):
    model = write_model(tmp_path / "model.safetensors", bpe, **switches)
    write_folder(tmp_path / "model.safetensors", tmp_path / "out")
    read_folder(tmp_path / "out", tmp_path / "back.safetensors")
    back, metadata = load_model(tmp_path / "back.safetensors")
    assert back.config == model.config
    assert metadata["tokenizer"] == bpe.to_dict()
    tensors, others = model.state_dict(), back.state_dict()
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def write_gpt2(folder, tokenizer, seed=0, **changes):
    """Write a random GPT-2 as its authors do: vocab.json, merges.txt, one special token."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    folder.mkdir()
    values = tokenizer.to_dict()["model"]
    vocab = {token: index for index, token in enumerate(list(values["vocab"])[4:])}
    vocab["<|endoftext|>"] = len(vocab)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in values["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    torch.manual_seed(seed)
    sizes = {"n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 2, **changes}
    end = len(vocab) - 1
    config = GPT2Config(vocab_size=len(vocab), bos_token_id=end, eos_token_id=end, **sizes)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model.eval(), GPT2Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, gpt2_bpe):
    """Return a folder with a random GPT-2, its model and tokenizer, and the converted file."""
    folder = tmp_path_factory.mktemp("gpt2")
    theirs = write_gpt2(folder / "gpt2", gpt2_bpe)
    read_folder(folder / "gpt2", folder / "gpt2.safetensors")
    return folder / "gpt2", *theirs, folder / "gpt2.safetensors"


def test_converted_tokenizer_is_that_of_gpt2(gpt2, full):
    _, _, theirs, path = gpt2
    tokenizer = TorchBackend.load(path).tokenizer
    for text in random_texts(10_000 if full else 500):
        expected = theirs(text, split_special_tokens=True)["input_ids"]
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == [token + 4 for token in expected], text
        assert tokenizer.decode(ids) == theirs.decode(expected), text


def test_converted_gpt2_gives_the_probabilities_of_gpt2(gpt2):
    """Compare probabilities, which the three tokens that GPT-2 lacks must not dilute."""
    _, theirs, their_tokenizer, path = gpt2
    backend = TorchBackend.load(path)
    ids = [their_tokenizer.eos_token_id, *their_tokenizer(TEXT)["input_ids"][:20]]
    ids.append(their_tokenizer.eos_token_id)
    ids = torch.tensor([ids])
    with torch.inference_mode():
        loss = theirs(input_ids=ids, labels=ids).loss.item()
    text = their_tokenizer.decode(ids[0, 1:-1])
    total, _ = score(backend, text)
    assert total.nats / total.tokens == pytest.approx(loss, rel=1e-6)


def test_changed_special_token_is_that_of_both_sides(tmp_path, gpt2_bpe):
    """After fine-tuning, the rows of unused special tokens differ from that of <eos>."""
    model = write_model(tmp_path / "model.safetensors", gpt2_bpe, **CONVERTED_GPT2)
    assert not torch.equal(model.token_embedding.weight[0], model.token_embedding.weight[3])
    write_folder(tmp_path / "model.safetensors", tmp_path / "out")


def test_round_trip_of_gpt2_gives_equal_tensors(gpt2, tmp_path):
    from safetensors.torch import load_file

    folder, _, their_tokenizer, path = gpt2
    write_folder(path, tmp_path / "back")
    before, after = (
        load_file(place / "model.safetensors") for place in (folder, tmp_path / "back")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    _, tokenizer = load_with_transformers(tmp_path / "back")
    assert tokenizer.get_vocab() == their_tokenizer.get_vocab()
    assert tokenizer(TEXT)["input_ids"] == their_tokenizer(TEXT)["input_ids"]


@pytest.mark.parametrize(
    "changes",
    [{"n_head": 1, "n_inner": 50}, {"n_embd": 40, "n_head": 5, "activation_function": "relu"}],
    ids=str,
)
def test_gpt2_of_other_shapes_is_converted(tmp_path, gpt2_bpe, changes):
    write_gpt2(tmp_path / "gpt2", gpt2_bpe, **changes)
    parity, _, _ = read_folder(tmp_path / "gpt2", tmp_path / "x.safetensors")
    assert parity.difference < 1e-5


def wide_bpe(count: int) -> BPETokenizer:
    """Return a tokenizer with `count` tokens: all bytes, and pairs of bytes."""
    values = BPETokenizer(260).to_dict()
    tokens = list(values["model"]["vocab"])
    merges = [[a, b] for a in tokens[4:] for b in tokens[4:]][: count - len(tokens)]
    vocab = {token: i for i, token in enumerate([*tokens, *map("".join, merges)])}
    return BPETokenizer.from_dict(
        {**values, "model": {**values["model"], "vocab": vocab, "merges": merges}}
    )


@pytest.mark.full
def test_gpt2_of_124_million_parameters_is_converted(tmp_path):
    sizes = {"n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
    write_gpt2(tmp_path / "gpt2", wide_bpe(50_260), **sizes)
    read_folder(tmp_path / "gpt2", tmp_path / "x.safetensors")  # compares logits
    model, _ = load_model(tmp_path / "x.safetensors")
    assert model.num_parameters == 124_439_808 + 3 * 768  # three special tokens more


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "gelu"}, "its activation_function is gelu; MiniGPT has gelu_new"),
        ({"layer_norm_epsilon": 1e-6}, "its layer_norm_epsilon is 1e-06, but MiniGPT has 1e-05"),
        ({"scale_attn_by_inverse_layer_idx": True}, "its scale_attn_by_inverse_layer_idx is True"),
        ({"tie_word_embeddings": False}, "its tie_word_embeddings is False"),
        ({"n_positions": 4}, "max_seq_len"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_gpt2_that_we_cannot_compute_is_refused(tmp_path, gpt2_bpe, changes, message):
    write_gpt2(tmp_path / "gpt2", gpt2_bpe, **changes)
    with pytest.raises(UserError) as error:
        read_folder(tmp_path / "gpt2", tmp_path / "x.safetensors")
    assert str(error.value).startswith(f"{tmp_path / 'gpt2'}: ")
    assert message in str(error.value)
    assert not (tmp_path / "x.safetensors").exists()


def test_gpt2_with_an_added_token_is_refused(tmp_path, gpt2_bpe):
    model, tokenizer = write_gpt2(tmp_path / "gpt2", gpt2_bpe)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match="tokens that were added to the vocabulary"):
        read_folder(tmp_path / "gpt2", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def unigram():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    library = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    return PreTrainedTokenizerFast(tokenizer_object=library)


def without_library():
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


@pytest.mark.parametrize(
    ("build", "name"), [(unigram, "Unigram"), (without_library, "ByT5Tokenizer")]
)
def test_tokenizer_of_another_kind_is_refused(build, name):
    with pytest.raises(UserError, match=f"not that of GPT-2: {name}, not a byte pair encoding"):
        from_transformers(build())


def test_damaged_folders_are_refused_in_one_line(gpt2, tmp_path):
    def damage(name, content):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(gpt2[0], folder)
        (folder / name).write_bytes(content)
        return folder

    weights = (gpt2[0] / "model.safetensors").read_bytes()
    for folder in (
        damage("config.json", b"{"),
        damage("config.json", b'{"model_type": "llama"}'),
        damage("model.safetensors", weights[: len(weights) // 2]),
        damage("model.safetensors", b""),
        damage("vocab.json", b"[]"),
        tmp_path,
    ):
        with pytest.raises(UserError):
            read_folder(folder, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({}, "set model.head_bias to false and train again"),
        ({"bigram_buckets": 97}, "model.bigram_buckets is 97: no class of `transformers` has"),
        ({"qk_norm": True}, "model.qk_norm is True: no class of `transformers` has this part"),
        ({"positional": "rotary"}, "model.positional is rotary, but GPT-2 adds positions"),
    ],
)
def test_model_without_a_class_is_refused(tmp_path, bpe, switches, message):
    write_model(tmp_path / "model.safetensors", bpe, **switches)
    with pytest.raises(UserError) as error:
        write_folder(tmp_path / "model.safetensors", tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_folder_that_differs_is_not_left(classic, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "TOLERANCE", 1e-9)
    with pytest.raises(UserError, match="the logits differ by"):
        write_folder(classic[0], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folder_with_another_tokenizer_is_not_left(tmp_path, char, monkeypatch):
    write_model(tmp_path / "model.safetensors", char)
    monkeypatch.setattr("minigpt.interop.tokenizer.ANY_CHARACTER", r"[\s\S]{2}")
    with pytest.raises(UserError, match="the tokenizers differ: for the text"):
        write_folder(tmp_path / "model.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_model_card_has_metadata(classic):
    from huggingface_hub import ModelCard

    card = ModelCard.load(classic[1] / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert "llama.cpp" in card.text


def test_convert_refuses_unfit_paths(classic, tmp_path):
    path, folder = classic
    onnx = tmp_path / "minigpt.onnx"
    onnx.touch()
    for source, target, message in [
        (path, tmp_path, "exists already"),
        (onnx, tmp_path / "x", "must be a model file (.safetensors) or the folder of a GPT-2"),
        (path, tmp_path / "x.safetensors", "must be a folder"),
        (folder, tmp_path / "x", "must be a model file (.safetensors)"),
        (tmp_path / "y", tmp_path / "x", "not found; name a model file or the folder of a GPT-2"),
    ]:
        result = CliRunner().invoke(app, ["convert", str(source), str(target)])
        assert isinstance(result.exception, UserError)
        assert message in str(result.exception)


def test_convert_prints_a_command_that_fine_tunes(gpt2, tmp_path):
    (tmp_path / "pretrained").mkdir()
    target = tmp_path / "pretrained/my gpt2.safetensors"
    out = CliRunner().invoke(app, ["convert", str(gpt2[0]), str(target)]).stdout
    (command,) = re.findall("^fine-tune it: (.*)", out, re.MULTILINE)
    overrides = set(shlex.split(command)[4::2])
    assert "train.init_from=pretrained/my gpt2.safetensors" in overrides
    assert {"data.normalization=none", "model.d_model=32", "model.tied_head=true"} <= overrides
    assert {"train.optimizer=adamw", "train.learning_rate=1e-4"} <= overrides
    assert "train.min_learning_rate=1e-5" in overrides


def test_missing_package_names_the_extra_that_has_it(classic, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(sys, "argv", ["minigpt-cli", "convert", str(classic[0]), f"{tmp_path}/x"])
    message = r"transformers: package not installed; run `pip install '\.\[hf\]'`"
    with pytest.raises(UserError, match=message):
        run_app()


def test_convert_compares_documents_of_the_validation_split(tmp_path, char):
    ids = np.array([i for _ in range(9) for i in char.encode(TEXT)], dtype=np.uint8)
    (tmp_path / "tokens").mkdir()
    for split in ("train", "val"):
        (tmp_path / "tokens" / f"{split}.bin").write_bytes(ids.tobytes())
    counts = dict.fromkeys(("documents", "characters", "bytes", "tokens", "unknown"), len(ids))
    write_meta(tmp_path / "tokens", char, {"train": counts, "val": counts})
    write_model(tmp_path / "model.safetensors", char)
    result = write_folder(
        tmp_path / "model.safetensors", tmp_path / "out", Tokens(tmp_path / "tokens", char)
    )
    assert (result.rows, result.texts) == (3 + parity.MAX_ROWS, len(parity.TEXTS) + 9)


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"```{language}\n(.*?)```", (ROOT / "docs/interop.md").read_text(), re.DOTALL
    )


@pytest.mark.slow
def test_commands_of_the_document_work(project, gpt2_bpe):
    # as many channels as the default model has, more than there are characters
    project.edit("params.yaml", "d_model: 32", "d_model: 128")
    project.run("dvc", "repro", "train")
    _, their_tokenizer = write_gpt2(project.root / "gpt2", gpt2_bpe, n_positions=32)
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 3
    out = "".join(project.run("bash", "-c", command) for command in commands)
    assert "exported: equal logits in 11 texts" in out
    (snippet,) = blocks("python")
    assert "Once upon a time" in project.run(sys.executable, "-c", snippet)

    (fine_tuning,) = re.findall("^fine-tune it: (.*)", out, re.MULTILINE)
    project.run(*shlex.split(fine_tuning), "-S", "train.learning_rate=1e-3")
    details = json.loads((project.root / "reports/evaluation_details.json").read_text())
    assert 0 < details["bits_per_byte"] < 8
    command = ["minigpt-cli", "generate", "--prompt", "The cat", "--seed", "1", "--backend"]
    assert project.run(*command, "onnx") == project.run(*command, "torch")
    project.run("minigpt-cli", "convert", "models/minigpt.safetensors", "back")
    theirs, tokenizer = load_with_transformers(project.root / "back")
    assert tokenizer.get_vocab() == their_tokenizer.get_vocab()
    assert theirs.config.vocab_size == len(their_tokenizer)

    project.edit(
        "params.yaml", "init_from: pretrained/gpt2.safetensors", "init_from: pretrained/none"
    )
    out = project.run(sys.executable, "-m", "pipeline.build_vocab", code=1)
    assert out.startswith(
        "tokenizer.type: it is pretrained, but train.init_from is pretrained/none; set this"
    )
