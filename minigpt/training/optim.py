"""Optimizers and learning-rate schedules."""

import math

import torch
from torch import nn

from minigpt.common.config import TrainConfig


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """PyTorch's own optimizers, which together update every parameter of `model` once.

    "adamw": AdamW (Loshchilov & Hutter, arXiv:1711.05101) for all.
    "muon": Muon for the matrices inside the blocks, AdamW for the rest. It makes the update of a matrix
    orthogonal, so that every direction in it learns equally fast (Jordan et al., "Muon", 2024,
    kellerjordan.github.io/posts/muon). Updates are scaled to the size of AdamW's, so that one learning
    rate does for both (Liu et al., "Muon is Scalable for LLM Training", arXiv:2502.16982).

    Weight decay acts on matrices only: pulling biases and normalisation weights towards 0 regularises nothing.
    """
    by_muon = {
        name for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2
    }
    if config.optimizer == "adamw":
        by_muon = set()
    others = [p for name, p in model.named_parameters() if name not in by_muon]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    # fused: one kernel for all parameters instead of several for each
    betas = (config.beta1, config.beta2)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
    ]
    if by_muon:
        matrices = [p for name, p in model.named_parameters() if name in by_muon]
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def learning_rate(step: int, config: TrainConfig, total_steps: int) -> float:
    """The rate of `step`, which counts from 0: a pure function, so there is no state to save.

    After a linear warmup to `learning_rate` it stays there ("constant"); falls to `min_learning_rate` in a
    straight line ("linear") or along half a cosine (Loshchilov & Hutter, arXiv:1608.03983, without restarts);
    or stays and falls linearly over the last `decay_steps` ("wsd": warmup, stable, decay; Hu et al.,
    "MiniCPM", arXiv:2404.06395).
    """
    highest, lowest = config.learning_rate, config.min_learning_rate
    if step < config.warmup_steps:
        return highest * (step + 1) / config.warmup_steps
    decay_start = (
        total_steps - config.decay_steps if config.schedule == "wsd" else config.warmup_steps
    )
    progress = max(0.0, (step - decay_start) / max(1, total_steps - decay_start))
    if config.schedule == "constant":
        progress = 0.0
    elif config.schedule == "cosine":
        progress = 0.5 * (1 - math.cos(math.pi * progress))
    return highest + (lowest - highest) * progress
