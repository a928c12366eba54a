"""Optimizers and learning-rate schedules."""

import math

import torch
from torch import nn

from minigpt.common.config import TrainConfig
from minigpt.training.device import use_bfloat16
from minigpt.training.muon import Muon


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return optimizers that together update each parameter of `model` once.

    "adamw": AdamW (Loshchilov & Hutter, arXiv:1711.05101) for all parameters.
    "muon": Muon (`muon.py`) for the matrices inside the blocks, AdamW for the rest.
    """
    # 1. Choose the matrices for Muon: those of the blocks, not embeddings or the head.
    use_muon = config.optimizer == "muon"
    matrices: dict[str, nn.Parameter] = {}
    others: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        in_block = name.startswith("blocks.") and parameter.ndim == 2
        (matrices if use_muon and in_block else others)[name] = parameter
    # 2. Decay matrices only. Decay of biases and normalization weights does not regularize.
    decayed = [parameter for parameter in others.values() if parameter.ndim >= 2]
    spared = [parameter for parameter in others.values() if parameter.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    # 3. Build the optimizers. fused: one kernel for all parameters, not several for each.
    rate, betas = config.learning_rate, (config.beta1, config.beta2)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)
    ]
    if use_muon:
        # the weights of queries, keys and values are three matrices on top of each other
        groups = [
            {"params": [matrix], "parts": 3 if "query_key_value" in name else 1}
            for name, matrix in matrices.items()
        ]
        device = next(model.parameters()).device
        dtype = torch.bfloat16 if use_bfloat16(config, device) else torch.float32
        optimizers.append(Muon(groups, rate, config.weight_decay, dtype))
    return optimizers


def learning_rate(step: int, config: TrainConfig, total_steps: int) -> float:
    """Return the learning rate of `step`, counted from 0.

    The schedule is a pure function, so there is no state to save. After a linear warmup to
    `learning_rate`, the rate
    - stays constant ("constant"),
    - falls to `min_learning_rate` linearly ("linear") or along half a cosine ("cosine";
      Loshchilov & Hutter, arXiv:1608.03983, without restarts), or
    - stays constant and falls linearly over the last steps ("wsd": warmup, stable, decay;
      Hu et al., "MiniCPM", arXiv:2404.06395).
    The lengths of warmup and decay are shares of `total_steps`.
    """
    highest, lowest = config.learning_rate, config.min_learning_rate
    # 1. Warm up.
    warmup_steps = round(config.warmup_fraction * total_steps)
    if step < warmup_steps:
        return highest * (step + 1) / warmup_steps
    # 2. Measure the progress of the decay, from 0 to 1.
    wsd = config.schedule == "wsd"
    decay_start = total_steps * (1 - config.decay_fraction) if wsd else warmup_steps
    progress = max(0.0, (step - decay_start) / max(1, total_steps - decay_start))
    # 3. Bend it to the shape of the schedule.
    if config.schedule == "constant":
        progress = 0.0
    elif config.schedule == "cosine":
        progress = 0.5 * (1 - math.cos(math.pi * progress))
    return highest + (lowest - highest) * progress
