"""Checks of an exported model: equal to the checkpoint, or nearly as good if quantized."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minigpt.common.errors import UserError
from minigpt.generation.backend import Backend
from minigpt.generation.onnx_backend import OnnxBackend

MAX_ROWS = 4  # of the batches that are compared


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[OnnxBackend]:
    """Open the content of an ONNX file as a backend."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(data)
        yield OnnxBackend(path)


def max_logit_difference(expected: Backend, found: Backend, seed: int = 0) -> float:
    """Return the largest difference of a logit between two backends; infinite if one is NaN.

    For each length up to max_seq_len, rows of random ids are compared three times: prefilled at
    once, prefilled from a random cached position, and the last ids of all rows decoded together.
    """
    rng = np.random.default_rng(seed)
    V = expected.tokenizer.vocab_size
    worst = 0.0
    for length in range(1, expected.max_seq_len + 1):
        B = int(rng.integers(1, MAX_ROWS + 1))
        expected_cache, found_cache = expected.new_cache(B), found.new_cache(B)
        lengths = np.concatenate(([length], rng.integers(1, length + 1, size=B - 1)))  # (B,)
        rows = [rng.integers(V, size=length) for length in lengths]
        logits = [
            expected_cache.prefill(row, ids, 0) for row, ids in enumerate(rows)
        ]  # each (T, V)
        for row, ids in enumerate(rows):
            worst = max(worst, _gap(found_cache.prefill(row, ids, 0), logits[row]))
            start = int(rng.integers(len(ids)))
            tail = found_cache.prefill(row, ids[start:], start)
            worst = max(worst, _gap(tail, logits[row][start:]))
        last_ids, last_logits = (
            np.array([ids[-1] for ids in rows]),
            np.stack([x[-1] for x in logits]),
        )
        for cache in (expected_cache, found_cache):
            worst = max(worst, _gap(cache.decode(last_ids, lengths - 1), last_logits))
    return worst


def _gap(found: np.ndarray, expected: np.ndarray) -> float:
    # NaN fails every comparison, so a model that computes it would pass
    difference = np.abs(found - expected).max()
    return float(difference) if np.isfinite(difference) else float("inf")


def logits_of(backend: Backend, input_ids: Tensor) -> Tensor:
    """Run a backend like `MiniGPT.forward`: (B, T) → (B, T, V)."""
    cache = backend.new_cache(1)
    return torch.from_numpy(np.stack([cache.prefill(0, ids, 0) for ids in input_ids.numpy()]))


def check_parity(difference: float, tolerance: float) -> None:
    """Raise UserError if logits differ by more than `tolerance`."""
    if difference > tolerance:
        raise UserError(
            f"export.tolerance: the ONNX model's logits differ from PyTorch's by {difference:.2g}, "
            f"more than {tolerance:.2g}; no file was written"
        )


def check_quality(bits: float, expected: float, max_loss: float) -> None:
    """Raise UserError if `bits` exceeds `expected` by more than the share `max_loss`."""
    if not bits <= expected * (1 + max_loss):  # also true for NaN
        raise UserError(
            f"export.max_quality_loss: quantized, the model needs {bits:.4f} bits per character "
            f"instead of {expected:.4f}, {bits / expected - 1:.2%} more than before; at most "
            f"{max_loss:.2%} is allowed; raise it, or set export.quantize to null"
        )
