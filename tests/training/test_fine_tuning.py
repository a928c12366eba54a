import json
import shutil
import sys

import pytest
import torch
from conftest import build_model

from minigpt.common.errors import UserError
from minigpt.tokenizer import BPETokenizer, CharTokenizer
from minigpt.training.fine_tuning import adapt_vocabulary


@pytest.mark.parametrize("bigram_buckets", [0, 400])
def test_vocabulary_adaptation_keeps_the_logits(bigram_buckets):
    old, new = CharTokenizer("abcdefghij"), CharTokenizer("hface")
    torch.manual_seed(0)
    sizes = {
        "d_model": 16,
        "num_heads": 2,
        "num_layers": 1,
        "d_ff": 32,
        "bigram_buckets": bigram_buckets,
        "trigram_buckets": 0,
    }
    model, adapted = build_model(old.vocab_size, **sizes), build_model(new.vocab_size, **sizes)
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


@pytest.mark.slow
def test_pipeline_fine_tunes_a_pretrained_model(project):
    shutil.copy(
        project.root / "models/minigpt.safetensors", project.root / "pretrained/tales.safetensors"
    )
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
    summary = json.loads((project.root / "reports/training.json").read_text())
    assert summary["val/loss"] < 3.5  # an untrained model has at least ln 40 = 3.69
    assert "Stage 'train' didn't change" in project.run("dvc", "repro")

    with (project.root / "data/raw/sentences.txt").open("a") as file:
        file.write("\nOmega is written Ω or ω.\n")
    out = project.run("dvc", "repro", code=255)
    message = "train.init_from: pretrained/tales.safetensors: its vocabulary lacks these characters"
    assert f"{message} of the text: 'Ω', 'ω'" in out
    project.edit("params.yaml", "d_ff: 64", "d_ff: 128")
    out = project.run(sys.executable, "-m", "pipeline.train", code=1)
    assert (
        "pretrained/tales.safetensors: its d_ff is 64, but model.d_ff is 128; make them equal"
        in out
    )
    (project.root / "pretrained/tales.safetensors").unlink()
    out = project.run(sys.executable, "-m", "pipeline.train", code=1)
    assert "train.init_from: pretrained/tales.safetensors: not found" in out
    assert "Traceback" not in out
