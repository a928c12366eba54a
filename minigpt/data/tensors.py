"""Conversion of batches to PyTorch tensors; `batches.py` itself must not load PyTorch."""

import torch
from torch import Tensor

from minigpt.data.batches import Batch


def to_tensors(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Copy a NumPy batch to `device`: input_ids (B, T), targets (B, T)."""
    input_ids, targets = (torch.from_numpy(array) for array in batch)
    if device.type == "cuda":  # a copy from pinned memory runs in parallel with computation
        input_ids, targets = input_ids.pin_memory(), targets.pin_memory()
    return input_ids.to(device, non_blocking=True), targets.to(device, non_blocking=True)
