"""Golden losses: detect numeric changes of model, optimizer and batches within seconds."""

import pytest
import torch
from conftest import ARCHITECTURES, build_model, train_config

from minigpt.data.batches import Batches
from minigpt.training.train import Trainer

SIZES = {"d_model": 32, "num_heads": 2, "num_layers": 2, "d_ff": 64, "max_seq_len": 32}
CLASSIC = {
    "optimizer": "adamw",
    "learning_rate": 3e-3,
    "schedule": "cosine",
    "warmup_fraction": 0.04,
}
EXPECTED = [
    2.795880929291376,
    2.595603708764632,
    2.793120413674679,
    2.770523604809924,
    2.7796512424054716,
    2.7064203125646076,
    2.7781326930339487,
    3.034465866681908,
    2.8452058969135403,
    3.0272732061710914,
    2.554253101023278,
    2.994168733552165,
    2.985062896277507,
]
EXPECTED_BY_DEFAULT = 2.5696634460351486


def loss_after_50_steps(sentences, tokenizer, switches, **changes) -> float:
    ids = torch.tensor([token for text in sentences for token in tokenizer.encode(text)]).numpy()
    config = train_config(max_steps=50, eval_interval=50, precision="float32", **changes)
    torch.manual_seed(0)
    # float64: differences between CPUs stay far below the tolerance
    model = build_model(tokenizer.vocab_size, **SIZES, **switches).double()
    batches = Batches(ids, "packed", config.batch_size, 32, seed=0)
    return Trainer(model, batches, Batches(ids, "packed", 32, 32), config).run().best_val_loss


@pytest.mark.parametrize(
    ("switches", "expected"), list(zip(ARCHITECTURES, EXPECTED, strict=True)), ids=str
)
def test_loss_of_each_architecture_is_unchanged(sentences, tokenizer, switches, expected):
    loss = loss_after_50_steps(sentences, tokenizer, switches, **CLASSIC)
    assert loss == pytest.approx(expected, rel=1e-7)


def test_loss_of_the_default_training_is_unchanged(sentences, tokenizer):
    loss = loss_after_50_steps(sentences, tokenizer, {})
    # Muon computes in float32, which CPUs round differently
    assert loss == pytest.approx(EXPECTED_BY_DEFAULT, rel=1e-4)
