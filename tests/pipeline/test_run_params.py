"""Names of runs."""

import pytest

from pipeline.tracking.params import run_name


@pytest.mark.parametrize(
    ("title", "changed", "name"),
    [
        ("", {}, "defaults"),
        ("deep", {}, "deep"),
        ("deep", {"model.num_layers": 6}, "deep layers=6"),
        ("", {"train.learning_rate": 1e-3, "train.seed": 1}, "lr=1e-3 seed=1"),
        ("", {"train.learning_rate": 0.0123}, "lr=0.0123"),
        ("", {"train.warmup_fraction": 0.0, "model.dropout": 0.1}, "warmup_fraction=0 dropout=0.1"),
        ("", {"data.path": "data/raw/python-docs"}, "path=python-docs"),
        ("", {"train.max_steps": None}, "steps=None"),
    ],
)
def test_a_run_is_named_by_what_differs(title, changed, name):
    assert run_name(title, changed) == name
