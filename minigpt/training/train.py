"""The training loop: batches in, a trained model out.

The loop does not depend on a tracking library. It passes metrics to the `report` callback, and
checkpoints, from which an interrupted training resumes, to a `ResumeStore`.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minigpt.common.config import TrainConfig
from minigpt.common.errors import UserError
from minigpt.data.batches import Batches
from minigpt.data.tensors import to_tensors
from minigpt.model.checkpoint import Tensors
from minigpt.model.loss import cross_entropy, sum_loss
from minigpt.model.model import MiniGPT
from minigpt.tokenizer import PAD
from minigpt.training.best_weights import BestWeights
from minigpt.training.device import use_bfloat16
from minigpt.training.distributed import Group
from minigpt.training.memory import checkpoint_activations
from minigpt.training.optim import build_optimizers, learning_rate
from minigpt.training.resume import ResumeStore, pack_state, unpack_state

# Measurements of one step: "step", "tokens", and "train/loss", "learning_rate", … or "val/loss"
Metrics = dict[str, float]

# The micro-batches of a step, each input_ids and targets (B, T), and the targets of the whole step
StepInputs = tuple[list[tuple[Tensor, Tensor]], int]


@dataclass
class Progress:
    """Progress of a training; with weights and optimizer state, it determines the next step."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # input positions processed, padding included
    best_step: int = 0
    best_val_loss: float = math.inf
    evals_without_gain: int = 0
    history: list[Metrics] = field(default_factory=list)


class Interrupted(Exception):  # noqa: N818 (not an error)
    """Raised when `should_stop` ends a training early; its state is saved."""


class Trainer:
    """Trains `model` in place and leaves it with the weights of the lowest validation loss.

    Args:
        model: An initialized model, on the device to train on.
        train_batches, val_batches: One is indexed by step, the other is iterated.
        config: The section `train` of params.yaml.
        resume: Where to save checkpoints. If it holds one, training continues from there to the
            same bytes as without an interruption (on the same machine and number of threads).
        group: The processes that share the work; each builds a Trainer with the same arguments.

    Raises:
        UserError: The rows of a step cannot be divided evenly.
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
        self.best = BestWeights() if resume is None else resume.best
        self.loss_sum = torch.zeros((), device=self.device)  # since the last logged step
        if resume is not None and (checkpoint := resume.load()) is not None:
            self._restore(*checkpoint)
        self._check_group()
        if config.activation_checkpointing:
            checkpoint_activations(model)
        # both share the weights of `model`, which evaluation and sampling use directly
        parallel_model = self.group.parallel(model)
        self.forward = torch.compile(parallel_model) if config.compile else parallel_model
        self.autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=use_bfloat16(config, self.device)
        )
        self.prefetched: dict[int, StepInputs] = {}

    def run(
        self,
        report: Callable[[Metrics], None] = lambda metrics: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Progress:
        """Train until the last step or until the validation loss stops improving.

        Args:
            report: Called with the metrics of each logged step and each validation.
            should_stop: Called after each step; training stops if it returns true.

        Raises:
            Interrupted: `should_stop` returned true; the state is saved.
            UserError: The loss explodes or a gradient is not finite (the model keeps the weights of
                the step before), or a validation loss is not finite.
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
                self._save()
                raise Interrupted
            if self.resume and self.resume.is_due(progress.step) and not self.finished:
                self._save()
        self.optimizers.clear()  # their state is up to twice as large as the weights
        if self.group.rank == 0:  # the other processes have no use for a trained model
            self.model.load_state_dict(self.best.load(progress.best_step))
        self.model.eval()
        return progress

    @property
    def finished(self) -> bool:
        patience = self.config.patience
        out_of_patience = patience is not None and self.progress.evals_without_gain >= patience
        return out_of_patience or self.progress.step >= self.total_steps

    def _step(self) -> Tensor:
        """Update the weights once; return the gradient norm before clipping."""
        step = self.progress.step
        # 1. Set what depends on the step alone.
        self._set_learning_rate(step)
        self._seed_dropout(step)
        if step not in self.prefetched:
            self.prefetched[step] = self._inputs(step)
        microbatches, num_targets = self.prefetched.pop(step)
        # 2. Add up the gradients of the micro-batches.
        loss = torch.zeros((), device=self.device)
        for input_ids, targets in microbatches:  # both (B, T)
            with self.autocast:
                logits = self.forward(input_ids)  # (B, T, V)
                # a share of the mean over the whole step: each target counts the same
                share = cross_entropy(logits, targets, reduction="sum") / num_targets
            # DistributedDataParallel averages gradients over the group: turn the mean into the sum
            torch.autograd.backward(share * self.group.size)
            loss += share.detach()
        self.prefetched[step + 1] = self._inputs(step + 1)  # while an accelerator still computes
        loss = self.group.sum(loss)
        # 3. Limit the length of the gradient.
        gradient_norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.max_grad_norm
        )
        # 4. Stop before an update that would destroy the weights. Uniform predictions give log V.
        highest_loss = 3 * math.log(self.model.token_embedding.num_embeddings)
        if not (torch.isfinite(gradient_norm) & (loss < highest_loss)):
            raise self._diverged(
                step + 1, f"loss {loss.item():.3g}, gradient norm {gradient_norm.item():.3g}"
            )
        # 5. Move the weights against the gradient.
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad()
        self.loss_sum += loss
        self.progress.step += 1
        tokens = sum(input_ids.numel() for input_ids, _ in microbatches)
        self.progress.tokens += self.group.size * tokens
        return gradient_norm

    def _set_learning_rate(self, step: int) -> None:
        for optimizer in self.optimizers:
            for parameters in optimizer.param_groups:
                parameters["lr"] = learning_rate(step, self.config, self.total_steps)

    def _seed_dropout(self, step: int) -> None:
        """Make dropout a function of the step, so that a resumed training draws the same."""
        if self.model.dropout.p:
            seeds = np.random.SeedSequence([self.config.seed, step, self.group.rank])
            torch.manual_seed(int(seeds.generate_state(1)[0]))

    def _inputs(self, step: int) -> StepInputs:
        """Return this process's rows of the batch of `step`, as micro-batches."""
        batch = self.train_batches[step]  # input_ids and targets, both (B, T)
        own_rows = slice(self.group.rank, None, self.group.size)
        parts = (np.split(array[own_rows], self.config.accumulation_steps) for array in batch)
        microbatches = [to_tensors(part, self.device) for part in zip(*parts, strict=True)]
        return microbatches, int((batch[1] != PAD).sum())

    def _diverged(self, step: int, figures: str) -> UserError:
        rate = self.optimizers[0].param_groups[0]["lr"]
        return UserError(
            f"training diverged at step {step}: {figures}, learning rate {rate:.3g}; "
            "lower train.learning_rate"
        )

    def _log(self, gradient_norm: Tensor) -> Metrics:
        progress = self.progress
        # the last interval may be shorter
        steps = (progress.step - 1) % self.config.log_interval + 1
        metrics = {
            "step": progress.step,
            "tokens": progress.tokens,
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            "gradient_norm": gradient_norm.item(),
            "train/loss": self.loss_sum.item() / steps,
        }
        self.loss_sum.zero_()
        progress.history.append(metrics)
        return metrics

    def _evaluate(self) -> Metrics:
        """Compute the validation loss, and keep the weights if it is the lowest so far."""
        progress, group = self.progress, self.group
        # rank r of R evaluates batches r, r + R, r + 2R, …
        batches = itertools.islice(
            self.val_batches, group.rank, self.config.eval_batches, group.size
        )
        with self.autocast:
            sums = torch.tensor(sum_loss(self.model, batches), dtype=torch.float64)  # (2,)
        total, count = group.sum(sums).tolist()
        val_loss = total / count
        if not math.isfinite(val_loss):
            raise self._diverged(progress.step, f"validation loss {val_loss:.3g}")
        if val_loss < progress.best_val_loss:
            progress.best_val_loss, progress.best_step = val_loss, progress.step
            progress.evals_without_gain = 0
            if group.rank == 0:
                self.best.keep(progress.step, self.model.state_dict())
        else:
            progress.evals_without_gain += 1
        metrics = {"step": progress.step, "tokens": progress.tokens, "val/loss": val_loss}
        progress.history.append(metrics)
        return metrics

    def _check_group(self) -> None:
        group, config = self.group, self.config
        parts = group.size * config.accumulation_steps
        if config.batch_size % parts:
            raise UserError(
                f"train.batch_size: {config.batch_size} is not divisible by {parts} "
                f"({group.size} processes × accumulation_steps {config.accumulation_steps})"
            )
        steps = group.sum(torch.tensor(float(self.progress.step)))
        if steps != group.size * self.progress.step:
            raise UserError(
                ".minigpt: the processes found different checkpoints; share the folder "
                "between all machines"
            )

    def _save(self) -> None:
        if self.resume is not None and self.group.rank == 0:
            others = {"loss_sum": self.loss_sum}
            tensors = pack_state(self.model, self.optimizers, others)
            self.resume.save(self.progress.step, tensors, {"progress": asdict(self.progress)})

    def _restore(self, tensors: Tensors, metadata: dict[str, Any]) -> None:
        others = unpack_state(tensors, self.model, self.optimizers)
        self.loss_sum = others["loss_sum"].to(self.device)
        self.progress = Progress(**metadata["progress"])


def _total_steps(config: TrainConfig, batches: Batches) -> int:
    """Return the steps until `max_steps` or `max_epochs`, whichever comes first."""
    limits = [config.max_steps] if config.max_steps else []
    if config.max_epochs:
        limits.append(math.ceil(config.max_epochs * batches.num_rows / config.batch_size))
    return min(limits)
