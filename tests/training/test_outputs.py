import logging
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PARAMS, build_model

from minigpt.tokenizer import CharTokenizer
from minigpt.training.outputs import model_metadata, write_reports
from minigpt.training.train import Progress


@pytest.mark.parametrize(("characters", "drafting"), [(700, True), (900, False)])
def test_large_vocabulary_has_no_table_of_drafts(characters, drafting):
    tokenizer = CharTokenizer(map(chr, range(1000, 1000 + characters)))
    tokens = SimpleNamespace(ids={"train": np.arange(99)}, sha256=lambda: "")
    model = build_model(tokenizer.vocab_size, d_model=8, num_layers=1)
    metadata = model_metadata(PARAMS, tokenizer, tokens, model, {})
    assert ("ngram_table" in metadata) == drafting


def training(val_losses: list[float]) -> Progress:
    """Return a training with a validation every 10 steps."""
    best = val_losses.index(min(val_losses))
    history = [
        {"step": step, "tokens": step, name: loss}
        for number, loss in enumerate(val_losses)
        for step, name in ((10 * number + 10, "train/loss"), (10 * number + 10, "val/loss"))
    ]
    for row in history:
        row["val/bits_per_char"] = 1.0
    steps = 10 * len(val_losses)
    return Progress(steps, steps, 10 * best + 10, val_losses[best], history=history)


@pytest.mark.parametrize(
    ("val_losses", "held_out", "announced"),
    [
        ([3.0, 2.0, 2.5, 2.6], True, True),
        ([3.0, 2.0, 2.5, 2.6], False, False),
        ([3.0, 2.5, 2.2, 2.1], True, False),
        ([3.0, 2.5, 2.2, 2.1, 2.15], True, False),
    ],
)
def test_overfitting_is_announced(tmp_path, caplog, val_losses, held_out, announced):
    with caplog.at_level(logging.WARNING):
        write_reports(tmp_path, training(val_losses), held_out)
    message = "overfits: its validation loss was lowest at step 20 of 40 (2.0000; at the end 2.6"
    assert (message in caplog.text) == announced
    assert bool(caplog.text) == announced
