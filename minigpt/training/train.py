"""The training loop: batches in, a trained model out.

It knows no files and no tracker. What it learns on the way it tells to `report`; what it needs to go
on after an interruption it hands to a `ResumeStore`.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minigpt.common.config import TrainConfig
from minigpt.common.errors import UserError
from minigpt.data.batches import Batches
from minigpt.model.checkpoint import Tensors
from minigpt.model.loss import cross_entropy, sum_loss, to_tensors
from minigpt.model.model import MiniGPT
from minigpt.tokenizer import PAD
from minigpt.training.distributed import Group
from minigpt.training.optim import build_optimizers, learning_rate
from minigpt.training.resume import ResumeStore, pack_state, unpack_state

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
        group: the processes that share the work; all of them make a Trainer of the same arguments.

    Raises:
        UserError: the learning-rate schedule is longer than the training, or the rows of a step cannot
            be shared out evenly.
    """

    def __init__(
        self,
        model: MiniGPT,
        train_batches: Batches,
        val_batches: Batches,
        config: TrainConfig,
        resume: ResumeStore | None = None,
        group: Group | None = None,
    ):
        self.model, self.config, self.resume, self.group = model, config, resume, group or Group()
        self.train_batches, self.val_batches = train_batches, val_batches
        self.device = next(model.parameters()).device
        self.optimizers = build_optimizers(model, config)
        self.total_steps = _total_steps(config, train_batches)
        self.progress = Progress()
        self.best: Tensors = {}  # the weights with the lowest validation loss so far
        self.loss_sum = torch.zeros((), device=self.device)  # since the last row of the history
        if resume is not None and (state := resume.load()) is not None:
            self._load_state(*state)
        self._check_group()
        # what the steps run: the same weights as `model`, which evaluation and sampling use
        parallel_model = self.group.parallel(model)
        self.forward = torch.compile(parallel_model) if config.compile else parallel_model
        self.autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=use_bfloat16(config, self.device)
        )
        self.prefetched: dict[int, tuple[list[tuple[Tensor, Tensor]], int]] = {}
        self.saved_at = time.monotonic()

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
            UserError: the loss explodes, or a gradient is not finite, and the model is that of the step
                before; or a validation loss is not finite.
        """
        config, progress = self.config, self.progress
        self.model.train()
        while not self.finished:
            gradient_norm = self._step()
            last = progress.step == self.total_steps
            if progress.step % config.log_interval == 0 or last:
                report(self._log(gradient_norm))
            if progress.step % config.eval_interval == 0 or last:
                report(self._evaluate())
            if self.group.any(should_stop()) and not self.finished:
                self._save_state()
                raise Interrupted
            if self._state_is_due() and not self.finished:
                self._save_state()
        self.model.load_state_dict(self.best)
        self.model.eval()
        return progress

    @property
    def finished(self) -> bool:
        patience = self.config.patience
        tired = patience is not None and self.progress.evals_without_gain >= patience
        return tired or self.progress.step >= self.total_steps

    def _step(self) -> Tensor:
        """One update; returns the norm of the gradient before clipping."""
        step = self.progress.step
        self._prepare(step)
        pieces, num_targets = (
            self.prefetched.pop(step) if step in self.prefetched else self._pieces(step)
        )
        loss = torch.zeros((), device=self.device)
        for input_ids, targets in pieces:
            with self.autocast:
                piece_loss = (
                    cross_entropy(self.forward(input_ids), targets, reduction="sum") / num_targets
                )
            (
                piece_loss * self.group.size
            ).backward()  # gradients become the mean over the group: make it the sum
            loss += piece_loss.detach()
        self.prefetched[step + 1] = self._pieces(step + 1)  # while an accelerator is still at work
        loss = self.group.sum(loss)
        gradient_norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.max_grad_norm
        )
        # before the update, which would spoil every weight; guessing at random costs log V
        if not (
            torch.isfinite(gradient_norm) & (loss < 3 * math.log(self.model.head.out_features))
        ):
            raise self._diverged(
                step + 1, f"loss {loss.item():.3g}, gradient norm {gradient_norm.item():.3g}"
            )
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad()
        self.loss_sum += loss
        self.progress.step += 1
        self.progress.tokens += self.group.size * sum(input_ids.numel() for input_ids, _ in pieces)
        return gradient_norm

    def _prepare(self, step: int) -> None:
        """What depends on the step alone: the learning rate, and the randomness of dropout."""
        for optimizer in self.optimizers:
            for parameters in optimizer.param_groups:
                parameters["lr"] = learning_rate(step, self.config, self.total_steps)
        if self.model.dropout.p:
            seeds = np.random.SeedSequence([self.config.seed, step, self.group.rank])
            torch.manual_seed(int(seeds.generate_state(1)[0]))

    def _pieces(self, step: int) -> tuple[list[tuple[Tensor, Tensor]], int]:
        """This process's rows of the batch of a step, in pieces that fit into memory, and the targets of all rows."""
        input_ids, targets = self.train_batches[step]
        rows = slice(self.group.rank, None, self.group.size)
        parts = (
            np.split(array[rows], self.config.accumulation_steps) for array in (input_ids, targets)
        )
        return [to_tensors(piece, self.device) for piece in zip(*parts, strict=True)], int(
            (targets != PAD).sum()
        )

    def _diverged(self, step: int, figures: str) -> UserError:
        rate = self.optimizers[0].param_groups[0]["lr"]
        return UserError(
            f"training diverged at step {step}: {figures}, learning rate {rate:.3g}; lower train.learning_rate"
        )

    def _log(self, gradient_norm: torch.Tensor) -> Row:
        row = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            "gradient_norm": gradient_norm.item(),
            # the last row may come before its interval is full
            "train/loss": self.loss_sum.item()
            / ((self.progress.step - 1) % self.config.log_interval + 1),
        }
        self.loss_sum.zero_()
        self.progress.history.append(row)
        return row

    def _evaluate(self) -> Row:
        progress = self.progress
        batches = itertools.islice(
            self.val_batches, self.group.rank, self.config.eval_batches, self.group.size
        )
        total, count = self.group.sum(
            torch.tensor(sum_loss(self.model, batches), dtype=torch.float64)
        ).tolist()
        val_loss = total / count
        if not math.isfinite(val_loss):
            raise self._diverged(progress.step, f"validation loss {val_loss:.3g}")
        if val_loss < progress.best_val_loss:
            progress.best_val_loss, progress.best_step = val_loss, progress.step
            progress.evals_without_gain = 0
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        else:
            progress.evals_without_gain += 1
        row = {"step": progress.step, "tokens": progress.tokens, "val/loss": val_loss}
        progress.history.append(row)
        return row

    def _state_is_due(self) -> bool:
        seconds = self.config.checkpoint_seconds
        late = seconds is not None and time.monotonic() - self.saved_at >= seconds
        return late or self.progress.step % self.config.checkpoint_interval == 0

    def _check_group(self) -> None:
        pieces = self.group.size * self.config.accumulation_steps
        if self.config.batch_size % pieces:
            raise UserError(
                f"train.batch_size: {self.config.batch_size} is not divisible by {pieces} "
                f"({self.group.size} processes × accumulation_steps {self.config.accumulation_steps})"
            )
        steps = self.group.sum(torch.tensor(float(self.progress.step)))
        if steps != self.group.size * self.progress.step:
            raise UserError(
                ".minigpt: the processes found different states; let all machines see the same folder"
            )

    def _save_state(self) -> None:
        self.saved_at = time.monotonic()
        if self.resume is not None and self.group.rank == 0:
            tensors = pack_state(
                self.model, self.best, self.optimizers, {"loss_sum": self.loss_sum}
            )
            self.resume.save(self.progress.step, tensors, {"progress": asdict(self.progress)})

    def _load_state(self, tensors: Tensors, metadata: dict[str, Any]) -> None:
        self.best, others = unpack_state(tensors, self.model, self.optimizers)
        self.loss_sum = others["loss_sum"].to(self.device)
        self.progress = Progress(**metadata["progress"])


def _total_steps(config: TrainConfig, batches: Batches) -> int:
    """`max_steps` or `max_epochs`, whichever ends first."""
    limits = [config.max_steps] if config.max_steps is not None else []
    if config.max_epochs is not None:
        limits.append(math.ceil(config.max_epochs * batches.num_rows / config.batch_size))
    try:
        config.check_length(min(limits))
    except ValueError as error:
        raise UserError(f"train: {error}") from None
    return min(limits)


def use_bfloat16(config: TrainConfig, device: torch.device) -> bool:
    """Whether products run in bfloat16; by default where the processor is made for it, which quarters their time."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(
        capabilities.get(name) for name in ("avx512_bf16", "amx_bf16")
    )
