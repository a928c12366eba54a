import pandas as pd
import pytest
import torch
from conftest import build_model

from minigpt.common.plots import drawable
from minigpt.generation.torch_backend import TorchBackend
from pipeline.tracking import figures


@pytest.mark.parametrize("switches", [{}, {"positional": "rotary", "qk_norm": True}])
def test_attention_maps_are_the_weights_of_the_model(switches, monkeypatch):
    model = build_model(
        40, d_model=64, num_heads=4, num_layers=2, d_ff=64, max_seq_len=32, **switches
    ).eval()
    ids = torch.arange(21).unsqueeze(0)
    found = figures.attention_maps(model, ids)
    assert [weights.shape for weights in found] == [(4, 21, 21)] * 2
    # the formula written out, which calls attention_weights
    used = []
    slow = figures.attention_weights
    monkeypatch.setattr(
        "minigpt.model.model.attention_weights", lambda *args: used.append(slow(*args)) or used[-1]
    )
    for block in model.blocks:
        monkeypatch.setattr(block.attention, "fast", False)
    with torch.inference_mode():
        model(ids)
    for mine, theirs in zip(found, used, strict=True):
        torch.testing.assert_close(mine, theirs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_figures_name_characters_that_the_font_lacks(tmp_path):
    table = pd.DataFrame({"mistake": ["'猫' → '$'"], "count": [3], "share": [0.5]})
    figure = figures.mistakes(table)
    figure.savefig(tmp_path / "figure.png")
    assert figure.axes[0].get_yticklabels()[0].get_text() == r"'U+732B' → '\$'"


def test_labels_use_any_font_that_has_a_character():
    # in STIX, which comes with matplotlib, but not in the default font
    assert drawable("Ⓐ", ["DejaVu Sans", "STIXGeneral"]) == "Ⓐ"
    assert drawable("Ⓐ") == "U+24B6"


def test_figures_show_their_data(trained: TorchBackend):
    curves = pd.DataFrame({"step": [1, 2], "train/loss": [3.0, 2.0]})
    axes = figures.loss(curves, {"uniform": 4.2, "bigram": 2.5}).axes[0]
    assert axes.get_legend_handles_labels()[1] == ["train/loss", "uniform", "bigram"]
    encoding = figures.positional_encoding(trained.model.positional_encoding)
    assert encoding.axes[0].images[0].get_array().shape == (64, 64)
    table = pd.DataFrame({"mistake": ["'e' → 'a'"], "count": [3], "share": [0.5]})
    (bar,) = figures.mistakes(table).axes[0].patches
    assert bar.get_width() == pytest.approx(3)


def test_a_single_validation_is_visible():
    curves = pd.DataFrame({"step": [20, 40], "train/loss": [3.0, 2.0], "val/loss": [None, 2.1]})
    (_, validation) = figures.loss(curves, {}).axes[0].lines
    assert list(validation.get_xdata()) == [40]
    assert validation.get_marker() == "o"


def test_attention_maps_name_the_tokens(trained: TorchBackend):
    figure = figures.attention(trained.model, trained.tokenizer, "the cat\n")
    assert len(figure.axes) == 2 * 4
    letters = ["<bos>", *"the␣cat", "⏎" if "\n" in trained.tokenizer.token_strings else "<unk>"]
    rows, columns = figure.axes[0].get_yticklabels(), figure.axes[-1].get_xticklabels()
    for labels in (rows, columns):
        assert [label.get_text() for label in labels] == [*letters, "<eos>"]
