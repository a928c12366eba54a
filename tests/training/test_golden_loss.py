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
    2.5797849291692546,
]


@pytest.mark.parametrize(
    ("switches", "expected"), list(zip(ARCHITECTURES, EXPECTED, strict=True)), ids=str
)
def test_loss_after_50_steps_is_unchanged(sentences, tokenizer, switches, expected):
    ids = torch.tensor([token for text in sentences for token in tokenizer.encode(text)]).numpy()
    config = train_config(max_steps=50, eval_interval=50, precision="float32", **CLASSIC)
    torch.manual_seed(0)
    # float64: differences between CPUs stay far below the tolerance
    model = build_model(tokenizer.vocab_size, **SIZES, **switches).double()
    batches = Batches(ids, "packed", config.batch_size, 32, seed=0)
    progress = Trainer(model, batches, Batches(ids, "packed", 32, 32), config).run()
    assert progress.best_val_loss == pytest.approx(expected, rel=1e-7)
