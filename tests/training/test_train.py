import math
import shutil

import pytest
import torch
from conftest import build_model, mean_loss, runtime_config, train_config

from minigpt.common.errors import UserError
from minigpt.data.batches import Batches
from minigpt.model.loss import bits_per, cross_entropy
from minigpt.training.resume import ResumeStore
from minigpt.training.train import Interrupted, Progress, Trainer


@pytest.fixture(scope="module")
def ids(sentences, tokenizer):
    return torch.tensor(
        [token for text in sentences[:12] for token in tokenizer.encode(text)]
    ).numpy()


def trainer(ids, resume: ResumeStore | None = None, **changes) -> Trainer:
    config = train_config(**changes)
    torch.manual_seed(config.seed)
    model = build_model(
        40, d_model=16, num_heads=2, num_layers=1, d_ff=32, max_seq_len=16, dropout=0.1
    )
    train_batches = Batches(ids[:300], config.layout, config.batch_size, 16, config.seed)
    return Trainer(model, train_batches, Batches(ids[300:], config.layout, 8, 16), config, resume)


def outcome(finished: Trainer) -> tuple[dict[str, bytes], Progress]:
    """Return the results that an interruption must not change, bit for bit."""
    tensors = {
        name: tensor.numpy().tobytes() for name, tensor in finished.model.state_dict().items()
    }
    return tensors, finished.progress


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "packed"},
        {"layout": "padded", "accumulation_steps": 2, "schedule": "cosine"},
        {
            "optimizer": "adamw",
            "precision": "bfloat16",
            "eval_batches": 1,
            "patience": 2,
            "max_epochs": 0.6,
        },
    ],
    ids=str,
)
def test_interruption_at_any_step_does_not_change_the_outcome(ids, tmp_path, changes):
    whole = trainer(ids, **changes)
    whole.run()
    for stop in range(1, whole.progress.step):
        store = ResumeStore(tmp_path / str(stop), runtime_config())
        first = trainer(ids, store, **changes)
        with pytest.raises(Interrupted):
            first.run(should_stop=lambda stop=stop, run=first: run.progress.step == stop)
        second = trainer(ids, store, **changes)
        assert second.progress.step == stop
        second.run()
        assert outcome(second) == outcome(whole)


def train_with_seed(ids, seed: int) -> tuple[dict[str, bytes], Progress]:
    run = trainer(ids, seed=seed)
    run.run()
    return outcome(run)


def test_equal_seeds_give_equal_outcomes(ids):
    assert train_with_seed(ids, 0) == train_with_seed(ids, 0)


def test_different_seeds_give_different_weights(ids):
    assert train_with_seed(ids, 0)[0] != train_with_seed(ids, 1)[0]


def test_metrics_are_reported_at_their_intervals(ids):
    run = trainer(ids, max_steps=60, learning_rate=1e-2)
    reported = []
    progress = run.run(report=reported.append)
    assert reported == progress.history
    assert [row["step"] for row in reported if "train/loss" in row] == list(range(3, 61, 3))
    assert [row["step"] for row in reported if "val/loss" in row] == list(range(4, 61, 4))


def test_training_keeps_the_best_weights(ids):
    run = trainer(ids, max_steps=60, learning_rate=1e-2)
    before = mean_loss(run.model, run.val_batches)
    progress = run.run()
    losses = {row["step"]: row["val/loss"] for row in progress.history if "val/loss" in row}
    assert (
        progress.best_val_loss == min(losses.values()) == losses[progress.best_step] < before - 0.5
    )
    assert mean_loss(run.model, run.val_batches) == progress.best_val_loss
    assert not run.model.training


def test_training_stops_early_without_improvement(ids):
    run = trainer(
        ids,
        max_steps=400,
        learning_rate=0.3,
        min_learning_rate=0.3,
        warmup_fraction=0.0,
        patience=2,
    )
    progress = run.run()
    assert progress.step == progress.best_step + 2 * run.config.eval_interval < 400


def test_divergence_leaves_the_weights_unchanged(ids):
    run = trainer(ids)
    with torch.no_grad():
        run.model.head.bias[5] = float("inf")
    weights = run.model.head.weight.clone()
    with pytest.raises(
        UserError, match=r"diverged at step 1: .* learning rate 0\.0035; lower train\.learning_rate"
    ):
        run.run()
    assert torch.equal(run.model.head.weight, weights)


def test_exploding_loss_stops_training(ids):
    run = trainer(ids)
    with torch.no_grad():
        run.model.head.bias[5] = 100.0
    with pytest.raises(UserError, match=r"diverged at step 1: loss \d+, gradient norm"):
        run.run()


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_accumulation_steps_do_not_change_the_loss(ids, layout):
    """Weight every target equally, although padded rows differ in their number of targets."""
    losses = []
    for accumulation_steps in (1, 2, 4):
        run = trainer(
            ids, layout=layout, accumulation_steps=accumulation_steps, precision="float32"
        )
        # disable dropout, whose masks differ between microbatches
        run.model.apply(lambda module: setattr(module, "p", 0.0))
        for block in run.model.blocks:
            block.attention.dropout = 0.0
        losses.append([row["train/loss"] for row in run.run().history if "train/loss" in row])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_activation_checkpointing_saves_memory_and_changes_no_bit(ids):
    kept, outcomes = [], []
    for checkpointing in (False, True):
        run = trainer(ids, activation_checkpointing=checkpointing)  # with dropout
        sizes = []
        pack = lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run.forward(torch.full((2, 16), 5))
        kept.append(sum(sizes))
        run.run()
        outcomes.append(outcome(run))
    assert kept[1] < kept[0] / 2
    assert outcomes[0] == outcomes[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside PyTorch
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.full
def test_compiled_training_has_the_same_losses(ids):
    losses = []
    for compiled in (False, True):
        run = trainer(ids, compile=compiled, precision="float32", max_steps=4, log_interval=1)
        # disable dropout: compiled code draws its random numbers in another order
        for block in run.model.blocks:
            block.dropout.p = block.attention.dropout = run.model.dropout.p = 0.0
        losses.append([row["train/loss"] for row in run.run().history if "train/loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_indivisible_batch_size_is_rejected(ids):
    with pytest.raises(
        UserError, match=r"train\.batch_size: 4 is not divisible by 3 \(1 processes × accumulation_"
    ):
        trainer(ids, accumulation_steps=3)


def test_max_epochs_sets_the_number_of_steps(ids):
    run = trainer(ids, max_steps=None, max_epochs=2)
    progress = run.run()
    assert progress.step == math.ceil(2 * run.train_batches.num_rows / 4)
    assert trainer(ids, max_steps=3, max_epochs=2).total_steps == 3


def test_eval_batches_limits_validation_to_the_first_batches(ids):
    run = trainer(ids, eval_batches=2)
    progress = run.run()
    part = [batch for _, batch in zip(range(2), run.val_batches, strict=False)]
    assert (
        progress.best_val_loss
        == mean_loss(run.model, part)
        != mean_loss(run.model, run.val_batches)
    )


def test_checkpoints_are_saved_at_time_intervals(ids, tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    config = runtime_config(checkpoint_interval=1000, checkpoint_seconds=25)
    store = ResumeStore(tmp_path / "states", config)
    saved = []
    monkeypatch.setattr(
        "minigpt.training.resume.save", lambda path, *rest: saved.append(path.stem[-2:])
    )
    trainer(ids, store).run()
    assert saved == ["03", "06", "09"]


def test_padding_does_not_contribute_to_the_loss():
    logits = torch.randn(1, 4, 7)
    whole = cross_entropy(logits[:, :3], torch.tensor([[4, 5, 6]]))
    torch.testing.assert_close(cross_entropy(logits, torch.tensor([[4, 5, 6, 0]])), whole)


def test_bits_per_character_counts_every_prediction():
    assert bits_per(10, math.log(2), 12) == pytest.approx(1.2)
