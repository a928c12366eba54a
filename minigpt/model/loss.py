"""Cross-entropy: the training loss and the figures that evaluation derives from it."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.data.batches import Batch
from minigpt.data.tensors import to_tensors
from minigpt.tokenizer import PAD


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return -log p(target), in nats, averaged or summed over the targets that are not <pad>.

    Logits are (B, T, V), targets (B, T).
    """
    # PyTorch expects one row of logits for each target
    flat = logits.flatten(0, 1)  # (B·T, V)
    return F.cross_entropy(flat, targets.flatten(), ignore_index=PAD, reduction=reduction)


@torch.inference_mode()
def sum_loss(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, int]:
    """Return the sum of the cross-entropy over all `batches`, and the number of targets.

    The model is evaluated without dropout, and its mode is restored afterwards.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        input_ids, targets = to_tensors(batch, device)  # both (B, T)
        logits = model(input_ids).float()  # (B, T, V); bfloat16 is too coarse for a sum
        total += cross_entropy(logits, targets, reduction="sum").item()
        count += int((targets != PAD).sum())
    model.train(training)
    return total, count


def bits_per(unit_count: int, loss: float, predictions: int) -> float:
    """Return the bits needed per unit (character or byte) of a text of `unit_count` units.

    All predictions count, including those of <eos>: the text cannot be encoded without its
    boundaries.
    """
    return loss * predictions / unit_count / math.log(2)
