"""What training lowers and evaluation reports: cross-entropy, and its readable forms."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.data.batches import Batch
from minigpt.tokenizer import PAD


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """(B, T, V) logits, (B, T) targets → nats, over the targets that are not <pad>."""
    return F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction=reduction
    )


def to_tensors(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """A NumPy batch as tensors on `device`: input_ids (B, T), targets (B, T)."""
    input_ids, targets = (torch.from_numpy(array) for array in batch)
    if device.type == "cuda":  # from pinned memory the copy runs beside the computation
        input_ids, targets = input_ids.pin_memory(), targets.pin_memory()
    return input_ids.to(device, non_blocking=True), targets.to(device, non_blocking=True)


def mean_loss(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Mean cross-entropy in nats a token over all of `batches`; the model is left as it was."""
    total, count = sum_loss(model, batches)
    return total / count


@torch.inference_mode()
def sum_loss(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, int]:
    """As `mean_loss`, but the sum and what it is to be divided by."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        input_ids, targets = to_tensors(batch, device)
        total += cross_entropy(model(input_ids), targets, reduction="sum").item()
        count += int((targets != PAD).sum())
    model.train(training)
    return total, count


def bits_per(unit_count: int, loss: float, predictions: int) -> float:
    """Bits to write one unit (a character, a byte) of a text of `unit_count` of them.

    All predictions are paid for, those of <bos> and <eos> included: the text cannot be written
    without its ends.
    """
    return loss * predictions / unit_count / math.log(2)
