"""Optimizers and learning-rate schedules."""

import math

import torch
from torch import nn

from minigpt.common.config import TrainConfig


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return PyTorch optimizers that together update each parameter of `model` once.

    "adamw": AdamW (Loshchilov & Hutter, arXiv:1711.05101) for all parameters.
    "muon": Muon for the matrices inside the blocks, AdamW for the rest. Muon orthogonalizes the
    update of a matrix, so that all of its directions learn equally fast (Jordan et al., "Muon",
    2024, kellerjordan.github.io/posts/muon). Updates are scaled to the size of AdamW's, so that
    both share one learning rate (Liu et al., "Muon is Scalable for LLM Training",
    arXiv:2502.16982).
    """
    # 1. Choose the matrices for Muon: those of the blocks, not embeddings or the head.
    use_muon = config.optimizer == "muon"
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        in_block = name.startswith("blocks.") and parameter.ndim == 2
        (matrices if use_muon and in_block else others).append(parameter)
    # 2. Decay matrices only. Decay of biases and normalization weights does not regularize.
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    # 3. Build the optimizers. fused: one kernel for all parameters, not several for each.
    rate, betas = config.learning_rate, (config.beta1, config.beta2)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)
    ]
    if matrices:
        muon = torch.optim.Muon(
            matrices,
            lr=rate,
            weight_decay=config.weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        )
        optimizers.append(muon)
    return optimizers


def learning_rate(step: int, config: TrainConfig, total_steps: int) -> float:
    """Return the learning rate of `step`, counted from 0.

    The schedule is a pure function, so there is no state to save. After a linear warmup to
    `learning_rate`, the rate
    - stays constant ("constant"),
    - falls to `min_learning_rate` linearly ("linear") or along half a cosine ("cosine";
      Loshchilov & Hutter, arXiv:1608.03983, without restarts), or
    - stays constant and falls linearly over the last `decay_steps` ("wsd": warmup, stable, decay;
      Hu et al., "MiniCPM", arXiv:2404.06395).
    """
    highest, lowest = config.learning_rate, config.min_learning_rate
    # 1. Warm up.
    if step < config.warmup_steps:
        return highest * (step + 1) / config.warmup_steps
    # 2. Measure the progress of the decay, from 0 to 1.
    wsd = config.schedule == "wsd"
    decay_start = total_steps - config.decay_steps if wsd else config.warmup_steps
    progress = max(0.0, (step - decay_start) / max(1, total_steps - decay_start))
    # 3. Bend it to the shape of the schedule.
    if config.schedule == "constant":
        progress = 0.0
    elif config.schedule == "cosine":
        progress = 0.5 * (1 - math.cos(math.pi * progress))
    return highest + (lowest - highest) * progress
