import shutil
import sys

import pandas as pd
import pytest
import torch
from conftest import GPT2, build_model, model_metadata, randomize

from minigpt.common.errors import UserError
from minigpt.model.checkpoint import save
from minigpt.tokenizer import BPETokenizer, CharTokenizer
from minigpt.training.fine_tuning import adapt_vocabulary, load_pretrained

SMALL = {"d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 32}


@pytest.mark.parametrize("switches", [{}, {"bigram_buckets": 400}, GPT2], ids=str)
def test_vocabulary_adaptation_keeps_the_logits(switches):
    old, new = CharTokenizer("abcdefghij"), CharTokenizer("hface")
    torch.manual_seed(0)
    model, adapted = (
        build_model(tokenizer.vocab_size, **SMALL, **switches) for tokenizer in (old, new)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    adapted.load_state_dict(adapt_vocabulary(model.state_dict(), old, new))
    text = "facehface"
    logits = model(torch.tensor([old.encode(text)]))
    known = [old.encode(character, False)[0] for character in new.characters]
    torch.testing.assert_close(
        adapted(torch.tensor([new.encode(text)])), logits[:, :, [0, 1, 2, 3, *known]]
    )


def test_characters_missing_from_the_model_are_listed():
    with pytest.raises(
        UserError, match=r"vocabulary lacks these characters of the text: '\\n', 'x'; remove them"
    ):
        adapt_vocabulary({}, CharTokenizer("abc"), CharTokenizer("abx\n"))


def test_different_subword_vocabulary_is_rejected():
    one, other = BPETokenizer(262), BPETokenizer(261)
    for tokenizer in (one, other):
        tokenizer.build_vocab(["aaaa bbbb aaaa bbbb"])
    weights = {"head.bias": torch.zeros(3)}
    assert adapt_vocabulary(weights, one, one) is weights
    with pytest.raises(UserError, match=r"subword vocabulary differs from data/vocab\.json"):
        adapt_vocabulary(weights, one, other)


def pretrained_file(folder, tokenizer, **changes):
    torch.manual_seed(0)
    model = randomize(build_model(tokenizer.vocab_size, **SMALL, **changes))
    path = folder / "pretrained.safetensors"
    save(path, model.state_dict(), model_metadata(model, tokenizer))
    return path, model


def test_learned_positions_are_cut_to_a_shorter_context(tmp_path, tokenizer):
    path, pretrained = pretrained_file(tmp_path, tokenizer, **GPT2, max_seq_len=16)
    model = build_model(tokenizer.vocab_size, **SMALL, **GPT2, max_seq_len=8).eval()
    load_pretrained(path, model, tokenizer)
    ids = torch.arange(8).unsqueeze(0)
    assert torch.equal(model(ids), pretrained(ids))
    longer = build_model(tokenizer.vocab_size, **SMALL, **GPT2, max_seq_len=17)
    with pytest.raises(UserError, match=r"has learned 16 positions, fewer than model\.max_seq_len"):
        load_pretrained(path, longer, tokenizer)


def test_other_architecture_names_all_parameters_to_set(tmp_path, tokenizer):
    path, _ = pretrained_file(tmp_path, tokenizer, **GPT2)
    with pytest.raises(UserError, match=r"set model\.positional=learned model\.activation=gelu "):
        load_pretrained(path, build_model(tokenizer.vocab_size, **SMALL), tokenizer)


@pytest.mark.slow
def test_pipeline_fine_tunes_a_pretrained_model(project):
    shutil.copy(
        project.root / "models/minigpt.safetensors", project.root / "pretrained/tales.safetensors"
    )
    assert project.run("dvc", "status", "--json").strip() == "{}"  # the model does not use it
    small_updates = [
        "train.learning_rate=1e-6",
        "train.min_learning_rate=1e-6",
        "train.max_steps=5",
    ]
    changes = [
        "data.path=data/raw/sentences.txt",
        "train.init_from=pretrained/tales.safetensors",
        *small_updates,
    ]
    project.run("dvc", "exp", "run", *(part for change in changes for part in ("-S", change)))
    validation = pd.read_csv(project.root / "reports/validation.csv")
    assert validation["val/loss"].min() < 3.5  # an untrained model has at least ln 40 = 3.69
    assert "Stage 'train' didn't change" in project.run("dvc", "repro")

    with (project.root / "data/raw/sentences.txt").open("a") as file:
        file.write("\nOmega is written Ω or ω.\n")
    out = project.run("dvc", "repro", code=255)
    message = "train.init_from: pretrained/tales.safetensors: its vocabulary lacks these characters"
    assert f"{message} of the text: 'Ω', 'ω'" in out
    project.edit("params.yaml", "d_ff: 64", "d_ff: 128")
    out = project.run(sys.executable, "-m", "pipeline.train", code=1)
    assert "pretrained/tales.safetensors: its architecture is another one; set model.d_ff=64" in out
    (project.root / "pretrained/tales.safetensors").unlink()
    out = project.run(sys.executable, "-m", "pipeline.train", code=1)
    assert "train.init_from: pretrained/tales.safetensors: not found" in out
    assert "Traceback" not in out
