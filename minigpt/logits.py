"""What logits say of tokens, in NumPy: for every backend alike."""

import numpy as np


def log_probabilities(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Of each of `ids` (N,), in nats, as the model itself has it: logits (N, V) → (N,), in float64."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits[np.arange(len(ids)), ids] - np.log(np.exp(logits).sum(axis=1))
