import pytest
import torch
from conftest import build_model, train_config

from minigpt.model.model import MiniGPT
from minigpt.training.optim import build_optimizers, learning_rate


@pytest.fixture
def model() -> MiniGPT:
    return build_model(40, d_model=16, num_heads=2, num_layers=1, d_ff=32, bigram_buckets=9)


def test_weight_decay_applies_only_to_matrices(model):
    (adamw,) = build_optimizers(model, train_config())
    decayed, spared = adamw.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in spared["params"]} == {1}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_updated_by_one_optimizer(model, optimizer):
    optimizers = build_optimizers(model, train_config(optimizer=optimizer))
    updated = [id(p) for each in optimizers for group in each.param_groups for p in group["params"]]
    assert sorted(updated) == sorted(map(id, model.parameters()))
    assert all(group["lr"] == 3e-3 for each in optimizers for group in each.param_groups)


def test_muon_updates_the_matrices_of_the_blocks(model):
    _, muon = build_optimizers(model, train_config(optimizer="muon"))
    matrices = [
        p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2
    ]
    assert {id(p) for p in muon.param_groups[0]["params"]} == set(map(id, matrices))


def test_muon_updates_are_nearly_orthogonal(model):
    _, muon = build_optimizers(model, train_config(optimizer="muon", weight_decay=0.0))
    weight = model.blocks[0].feed_forward.linear1.weight  # (32, 16)
    before = weight.detach().clone()
    weight.grad = torch.randn_like(weight)
    muon.step()
    singular_values = torch.linalg.svdvals(weight.detach() - before)
    # the singular values of the gradient itself differ by a factor of five
    assert singular_values.max() < 2 * singular_values.min()


STEPS = 100


def rates(**changes) -> list[float]:
    config = train_config(
        max_steps=STEPS,
        warmup_steps=10,
        decay_steps=20,
        learning_rate=1.0,
        min_learning_rate=0.1,
        **changes,
    )
    return [learning_rate(step, config, STEPS) for step in range(STEPS + 1)]


@pytest.mark.parametrize(
    ("schedule", "middle", "late", "end"),
    [
        ("cosine", 0.55, 0.160, 0.1),
        ("linear", 0.55, 0.25, 0.1),
        ("constant", 1.0, 1.0, 1.0),
        ("wsd", 1.0, 0.775, 0.1),
    ],
)
def test_schedule_has_the_expected_rates(schedule, middle, late, end):
    values = rates(schedule=schedule)
    assert values[0] == 0.1
    assert values[9] == values[10] == max(values) == 1.0
    assert values[55] == pytest.approx(middle)
    assert values[85] == pytest.approx(late, abs=1e-3)
    assert values[STEPS] == pytest.approx(end)
    assert values[10:] == sorted(values[10:], reverse=True)


def test_wsd_is_constant_until_decay_begins():
    values = rates(schedule="wsd")
    assert values[9:81] == [1.0] * 72
    assert values[90] == pytest.approx(0.55)
