"""What an exported model has to prove before it is kept: that it equals the one it came from, or nearly."""

import numpy as np
import torch
from torch import Tensor

from minigpt.common.errors import UserError
from minigpt.generation.backend import Backend


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
        theirs, ours = expected.new_cache(rows), found.new_cache(rows)
        lengths = np.concatenate(([length], rng.integers(1, length + 1, size=rows - 1)))
        texts = [rng.integers(V, size=length) for length in lengths]
        wanted = [theirs.prefill(row, ids, 0) for row, ids in enumerate(texts)]
        for row, ids in enumerate(texts):
            worst = max(worst, _gap(ours.prefill(row, ids, 0), wanted[row]))
            past = int(rng.integers(len(ids)))
            worst = max(worst, _gap(ours.prefill(row, ids[past:], past), wanted[row][past:]))
        for memory in (theirs, ours):
            stepped = memory.decode(np.array([ids[-1] for ids in texts]), lengths - 1)
            worst = max(worst, _gap(stepped, np.stack([logits[-1] for logits in wanted])))
    return worst


def logits_of(backend: Backend, input_ids: Tensor) -> Tensor:
    """As `MiniGPT.forward`: (B, T) → (B, T, V)."""
    memory = backend.new_cache(1)
    return torch.from_numpy(np.stack([memory.prefill(0, ids, 0) for ids in input_ids.numpy()]))


def check_quality(bits: float, expected: float, most: float) -> None:
    """Raises UserError where `bits` per character are more than the share `most` above those `expected`."""
    if not bits <= expected * (1 + most):
        raise UserError(
            f"export.max_quality_loss: quantized, the model takes {bits:.4f} bits per character in place of "
            f"{expected:.4f}, {bits / expected - 1:.2%} more where {most:.2%} are allowed; raise it, or set "
            "export.quantize to null"
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
