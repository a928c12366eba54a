import pandas as pd
import pytest
import torch
from conftest import build_model

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


def test_figures_show_their_data(trained: TorchBackend):
    curves = pd.DataFrame({"step": [1, 2], "train/loss": [3.0, 2.0]})
    axes = figures.loss(curves, {"uniform": 4.2, "bigram": 2.5}).axes[0]
    assert axes.get_legend_handles_labels()[1] == ["train/loss", "uniform", "bigram"]
    assert len(figures.attention(trained.model, trained.tokenizer).axes) == 2 * 4
    assert figures.positional_encoding(trained.model.positional_encoding).axes[0].images[
        0
    ].get_array().shape == (
        64,
        64,
    )
    table = pd.DataFrame({"mistake": ["'e' → 'a'"], "count": [3], "share": [0.5]})
    (bar,) = figures.mistakes(table).axes[0].patches
    assert bar.get_width() == pytest.approx(3)
