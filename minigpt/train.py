"""The training loop: batches in, a trained model out.

It knows no files and no tracker. What it learns on the way it tells to `report`; what it needs to go
on after an interruption it hands to a `ResumeStore`.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from minigpt.checkpoint import ResumeStore, Tensors
from minigpt.config import TrainConfig
from minigpt.dataset import Batches
from minigpt.errors import UserError
from minigpt.loss import cross_entropy, mean_loss, to_tensors
from minigpt.model import MiniGPT
from minigpt.optim import build_optimizer, learning_rate

# What was measured at a step: "step", "tokens", and "train/loss", "learning_rate", … or "val/loss"
Row = dict[str, float]


@dataclass
class Progress:
    """How far training is; together with weights, optimizer and RNG all that the next step depends on."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # input positions seen, padding included
    best_step: int = 0
    best_val_loss: float = math.inf
    evals_without_gain: int = 0
    history: list[Row] = field(default_factory=list)


class Interrupted(Exception):  # noqa: N818 (nothing went wrong)
    """Training was asked to stop before its end; its state is saved."""


class Trainer:
    """Trains `model` in place; at the end it holds the weights with the lowest validation loss.

    Args:
        model: on the device to train on, initialised.
        train_batches, val_batches: addressed by step, and iterated as a whole.
        config: the `train` section of params.yaml.
        resume: where to keep the state; a state found there is continued, to the very bytes that an
            uninterrupted training gives (same machine, same number of threads).
    """

    def __init__(
        self,
        model: MiniGPT,
        train_batches: Batches,
        val_batches: Batches,
        config: TrainConfig,
        resume: ResumeStore | None = None,
    ):
        self.model, self.config, self.resume = model, config, resume
        self.train_batches, self.val_batches = train_batches, val_batches
        self.device = next(model.parameters()).device
        self.optimizer = build_optimizer(model, config)
        self.progress = Progress()
        self.best: Tensors = {}  # the weights with the lowest validation loss so far
        self.loss_sum = torch.zeros((), device=self.device)  # since the last row of the history
        if resume is not None and (state := resume.load()) is not None:
            self._load_state(*state)

    def run(
        self,
        report: Callable[[Row], None] = lambda row: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Progress:
        """Train to the end.

        Args:
            report: told each new row of the history.
            should_stop: asked after each step.

        Raises:
            Interrupted: `should_stop` said so; the state is saved.
            UserError: the loss or a gradient is no longer finite; the model is that of the step before.
        """
        config, progress = self.config, self.progress
        self.model.train()
        while not self.finished:
            gradient_norm = self._step()
            last = progress.step == config.max_steps
            if progress.step % config.log_interval == 0 or last:
                report(self._log(gradient_norm))
            if progress.step % config.eval_interval == 0 or last:
                report(self._evaluate())
            if should_stop() and not self.finished:
                self._save_state()
                raise Interrupted
            if progress.step % config.checkpoint_interval == 0 and not self.finished:
                self._save_state()
        self.model.load_state_dict(self.best)
        self.model.eval()
        return progress

    @property
    def finished(self) -> bool:
        patience = self.config.patience
        tired = patience is not None and self.progress.evals_without_gain >= patience
        return tired or self.progress.step >= self.config.max_steps

    def _step(self) -> torch.Tensor:
        """One update; returns the norm of the gradient before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.progress.step, self.config)
        input_ids, targets = to_tensors(self.train_batches[self.progress.step], self.device)
        loss = cross_entropy(self.model(input_ids), targets)
        loss.backward()
        gradient_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        if not torch.isfinite(gradient_norm):  # before the update, which would spoil every weight
            raise self._diverged(f"loss {loss.item():.3g}, gradient norm {gradient_norm.item():.3g}")
        self.optimizer.step()
        self.model.zero_grad()
        self.loss_sum += loss.detach()
        self.progress.step += 1
        self.progress.tokens += input_ids.numel()
        return gradient_norm

    def _diverged(self, figures: str) -> UserError:
        rate = self.optimizer.param_groups[0]["lr"]
        step = self.progress.step + 1
        return UserError(
            f"training diverged at step {step}: {figures}, learning rate {rate:.3g}; lower train.learning_rate"
        )

    def _log(self, gradient_norm: torch.Tensor) -> Row:
        row = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": gradient_norm.item(),
            # the last row may come before its interval is full
            "train/loss": self.loss_sum.item() / ((self.progress.step - 1) % self.config.log_interval + 1),
        }
        self.loss_sum.zero_()
        self.progress.history.append(row)
        return row

    def _evaluate(self) -> Row:
        progress = self.progress
        val_loss = mean_loss(self.model, self.val_batches)
        if not math.isfinite(val_loss):
            raise self._diverged(f"validation loss {val_loss:.3g}")
        if val_loss < progress.best_val_loss:
            progress.best_val_loss, progress.best_step = val_loss, progress.step
            progress.evals_without_gain = 0
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        else:
            progress.evals_without_gain += 1
        row = {"step": progress.step, "tokens": progress.tokens, "val/loss": val_loss}
        progress.history.append(row)
        return row

    def _save_state(self) -> None:
        if self.resume is None:
            return
        tensors: Tensors = {"rng": torch.get_rng_state(), "loss_sum": self.loss_sum}
        tensors |= {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in values.items()}
        self.resume.save(self.progress.step, tensors, {"progress": asdict(self.progress)})

    def _load_state(self, tensors: Tensors, metadata: dict[str, Any]) -> None:
        def part(prefix: str) -> Tensors:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.best = part("best.")
        optimizer_state = self.optimizer.state_dict()
        for key, value in part("optimizer.").items():
            index, name = key.split(".")
            optimizer_state["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(optimizer_state)
        torch.set_rng_state(tensors["rng"])
        self.loss_sum = tensors["loss_sum"].to(self.device)
        self.progress = Progress(**metadata["progress"])
