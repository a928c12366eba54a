"""What an exported model has to prove before it is kept: that it equals the one it came from, or nearly."""

from collections.abc import Iterable

import numpy as np

from minigpt.backends import Backend
from minigpt.dataset import Batch
from minigpt.errors import UserError
from minigpt.logits import log_probabilities
from minigpt.tokenizer import PAD


def max_logit_difference(expected: Backend, found: Backend, seed: int = 0) -> float:
    """The largest difference of a logit between the backends, over every length 1 … max_seq_len.

    Random ids, in 1 to 4 rows. What `expected` reads at one go, `found` reads at one go, then again
    from a random position on, with the positions before it cached. Last of all both read the last ids, of all
    rows together, each with another number of cached positions.
    """
    rng = np.random.default_rng(seed)
    V = expected.tokenizer.vocab_size
    worst = 0.0
    for length in range(1, expected.max_seq_len + 1):
        rows = int(rng.integers(1, 5))
        theirs, ours = expected.memory(rows), found.memory(rows)
        lengths = np.concatenate(([length], rng.integers(1, length + 1, size=rows - 1)))
        texts = [rng.integers(V, size=length) for length in lengths]
        wanted = [theirs.read(row, ids, 0) for row, ids in enumerate(texts)]
        for row, ids in enumerate(texts):
            worst = max(worst, _gap(ours.read(row, ids, 0), wanted[row]))
            past = int(rng.integers(len(ids)))
            worst = max(worst, _gap(ours.read(row, ids[past:], past), wanted[row][past:]))
        for memory in (theirs, ours):
            stepped = memory.step(np.array([ids[-1] for ids in texts]), lengths - 1)
            worst = max(worst, _gap(stepped, np.stack([logits[-1] for logits in wanted])))
    return worst


def validation_loss(backend: Backend, batches: Iterable[Batch]) -> float:
    """Nats a token over all targets but <pad>; each row of a batch is a window of its own."""
    memory = backend.memory(1)
    total, count = 0.0, 0
    for input_ids, targets in batches:
        for ids, wanted in zip(input_ids, targets, strict=True):
            real = wanted != PAD
            total -= float(log_probabilities(memory.read(0, ids, 0)[real], wanted[real]).sum())
            count += int(real.sum())
    return total / count


def check_quality(loss: float, expected: float, most: float) -> None:
    """Raises UserError where `loss` is more than the share `most` above `expected`."""
    if not loss <= expected * (1 + most):
        raise UserError(
            f"export.max_quality_loss: quantized, the model's loss is {loss:.4f} in place of {expected:.4f}, "
            f"{loss / expected - 1:.2%} more where {most:.2%} are allowed; raise it, or set export.quantize to null"
        )


def _gap(found: np.ndarray, expected: np.ndarray) -> float:
    # NaN compares as nothing: a model that gives it must not pass
    difference = np.abs(found - expected).max()
    return float(difference) if np.isfinite(difference) else float("inf")


def check_parity(difference: float, tolerance: float) -> None:
    """Raises UserError where the backends differ by more than `tolerance`."""
    if difference > tolerance:
        raise UserError(
            f"export.tolerance: the ONNX model's logits differ from PyTorch's by {difference:.2g}, more than "
            f"{tolerance:.2g}; the file was not written"
        )
