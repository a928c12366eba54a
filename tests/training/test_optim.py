import pytest
import torch
from conftest import build_model, train_config

from minigpt.model.model import MiniGPT
from minigpt.training.muon import POLAR_EXPRESS, orthogonalize
from minigpt.training.optim import build_optimizers, learning_rate


@pytest.fixture
def model() -> MiniGPT:
    return build_model(
        40, d_model=16, num_heads=2, num_layers=1, d_ff=32, bigram_buckets=9, trigram_buckets=9
    )


def test_weight_decay_applies_only_to_matrices(model):
    (adamw,) = build_optimizers(model, train_config(optimizer="adamw"))
    decayed, spared = adamw.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in spared["params"]} == {1}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_updated_by_one_optimizer(model, optimizer):
    optimizers = build_optimizers(model, train_config(optimizer=optimizer))
    updated = [id(p) for each in optimizers for group in each.param_groups for p in group["params"]]
    assert sorted(updated) == sorted(map(id, model.parameters()))
    assert all(group["lr"] == 7e-3 for each in optimizers for group in each.param_groups)


def test_muon_updates_the_matrices_of_the_blocks(model):
    _, muon = build_optimizers(model, train_config(optimizer="muon"))
    matrices = [
        p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2
    ]
    assert {id(p) for group in muon.param_groups for p in group["params"]} == set(map(id, matrices))


def test_muon_follows_the_formula_for_each_matrix(model):
    """Compare the batched update with one in singular values, for a matrix at a time."""
    config = train_config(optimizer="muon", weight_decay=0.1, precision="float32")
    muon = build_optimizers(model.double(), config)[1]
    attention, feed_forward = model.blocks[0].attention, model.blocks[0].feed_forward
    weights = [
        *attention.query_key_value.weight.chunk(3),  # three matrices in one parameter
        *(attention.output.weight, feed_forward.linear1.weight, feed_forward.linear2.weight),
    ]
    expected = [weight.detach().clone() for weight in weights]
    means = [torch.zeros_like(weight) for weight in expected]
    for _ in range(3):
        for group in muon.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn_like(parameter)
        stacked = attention.query_key_value.weight.grad.chunk(3)
        gradients = [*stacked, *(weight.grad for weight in weights[3:])]
        muon.step()
        for weight, mean, gradient in zip(expected, means, gradients, strict=True):
            mean += 0.1 * (gradient - mean)
            left, values, right = torch.linalg.svd(gradient + 0.9 * (mean - gradient), False)
            values = values / (1.01 * values.norm() + 1e-7)
            for a, b, c in POLAR_EXPRESS:
                values = a * values + b * values**3 + c * values**5
            weight *= 1 - 7e-3 * 0.1
            weight -= 7e-3 * 0.2 * max(weight.shape) ** 0.5 * (left * values) @ right
    for weight, other in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach(), other)


def test_no_direction_of_an_update_dominates():
    gradient = torch.randn(1, 128, 32, generator=torch.Generator().manual_seed(0))
    gradient[..., 0] *= 20  # one direction dominates
    values = torch.linalg.svdvals(orthogonalize(gradient)[0])
    assert values.min() > 0.13
    assert values.max() < 1.88


STEPS = 100


def rates(**changes) -> list[float]:
    config = train_config(
        max_steps=STEPS,
        warmup_fraction=0.1,
        decay_fraction=0.2,
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
