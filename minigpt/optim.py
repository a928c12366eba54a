"""Optimizer and learning-rate schedule, both PyTorch's own."""

import math

import torch
from torch import nn

from minigpt.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101), weight decay on matrices only.

    Biases and normalisation weights are left alone: pulling them towards 0 regularises nothing.
    """
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    # fused: one kernel for all parameters instead of several for each
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warmup to `learning_rate`, then half a cosine down to `min_learning_rate`.

    `step` counts from 0 and is less than `max_steps` (Loshchilov & Hutter, arXiv:1608.03983, without restarts).
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * cosine
