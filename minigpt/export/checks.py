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
NUM_LENGTHS = 4  # that are compared, besides those at the edges
STEPS = 32  # decoded by `batch_changes_logits`


@contextlib.contextmanager
def opened(data: bytes, threads: int) -> Iterator[OnnxBackend]:
    """Open the content of an ONNX file as a backend with this number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(data)
        yield OnnxBackend(path, threads)


def max_logit_difference(expected: Backend, found: Backend, seed: int = 0) -> float:
    """Return the largest difference of a logit between two backends; infinite if one is NaN.

    For each of `compared_lengths`, rows of random ids are compared three times: prefilled at once,
    prefilled from a random cached position, and the last ids of all rows decoded together.
    """
    rng = np.random.default_rng(seed)
    V = expected.tokenizer.vocab_size
    gaps = []
    for length in compared_lengths(expected.max_seq_len, rng):
        B = int(rng.integers(1, MAX_ROWS + 1))
        expected_cache, found_cache = expected.new_cache(B), found.new_cache(B)
        lengths = np.concatenate(([length], rng.integers(1, length + 1, size=B - 1)))  # (B,)
        last_ids, last_logits = [], []
        for row, ids in enumerate([rng.integers(V, size=length) for length in lengths]):
            logits = expected_cache.prefill(row, ids, 0)  # (T, V)
            start = int(rng.integers(len(ids)))
            gaps.append(np.abs(found_cache.prefill(row, ids, 0) - logits).max())
            gaps.append(np.abs(found_cache.prefill(row, ids[start:], start) - logits[start:]).max())
            last_ids.append(ids[-1])
            last_logits.append(logits[-1])
        for cache in (expected_cache, found_cache):
            decoded = cache.decode(np.array(last_ids), lengths - 1)  # (B, V)
            gaps.append(np.abs(decoded - np.stack(last_logits)).max())
    # NaN fails every comparison, so a model that computes it would pass a check
    return float(np.nan_to_num(np.max(gaps), nan=np.inf))


def compared_lengths(max_seq_len: int, rng: np.random.Generator) -> list[int]:
    """Return lengths at the edges of the window and its stride, and random ones between them."""
    middle = max_seq_len // 2
    edges = {1, 2, middle - 1, middle, middle + 1, max_seq_len - 1, max_seq_len}
    others = rng.choice(max_seq_len, min(NUM_LENGTHS, max_seq_len), replace=False) + 1
    return sorted(length for length in edges | set(others.tolist()) if 1 <= length <= max_seq_len)


def batch_changes_logits(backend: Backend, seed: int = 0) -> bool:
    """Return whether a row that is decoded alone has other logits, by any bit, than in a batch."""
    rng = np.random.default_rng(seed)
    V, B = backend.tokenizer.vocab_size, backend.max_batch_size
    batch, alone = backend.new_cache(B), [backend.new_cache(1) for _ in range(B)]
    lengths = rng.integers(1, backend.max_seq_len // 2 + 1, size=B)  # (B,)
    for row, length in enumerate(lengths):
        ids = rng.integers(V, size=length)
        batch.prefill(row, ids, 0)
        alone[row].prefill(0, ids, 0)
    for _ in range(min(STEPS, backend.max_seq_len // 2)):
        ids = rng.integers(V, size=B)
        expected = [
            cache.prefill(0, ids[row : row + 1], int(lengths[row]))[0]
            for row, cache in enumerate(alone)
        ]
        if not np.array_equal(batch.decode(ids, lengths), np.stack(expected)):
            return True
        lengths += 1
    return False


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


def check_batches(backend: Backend) -> None:
    """Raise UserError if the text of a quantized model would depend on the batch.

    Its activations are rounded too, which turns differences in the last bit into visible ones.
    """
    if batch_changes_logits(backend):
        raise UserError(
            "quantize.formats: on this processor, a quantized model generates other texts in a "
            "batch than alone; set it to null"
        )


def check_quality(bits: float, expected: float, max_loss: float) -> None:
    """Raise UserError if `bits` exceeds `expected` by more than the share `max_loss`."""
    if not bits <= expected * (1 + max_loss):  # also true for NaN
        raise UserError(
            f"quantize.max_quality_loss: quantized, the model needs {bits:.4f} bits per character "
            f"instead of {expected:.4f}, {bits / expected - 1:.2%} more than before; at most "
            f"{max_loss:.2%} is allowed; raise it, or set quantize.formats to []"
        )
