"""Quantization of matrices to 8-bit integers."""

import numpy as np

# Weights of a row that share a scale. Above 64, the kernel rounds one row of activations
# differently from several, so the text would depend on the batch.
BLOCK_SIZE = 64


def quantize_blocks(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round each block of a row to integers around 128, times one scale.

    weight (N, K) → integers (N, blocks, BLOCK_SIZE), scales (N, blocks); K is padded with zeros.
    """
    N, K = weight.shape
    blocks = -(-K // BLOCK_SIZE)
    padded = np.zeros((N, blocks * BLOCK_SIZE), dtype=np.float32)
    padded[:, :K] = weight
    by_block = padded.reshape(N, blocks, BLOCK_SIZE)  # (N, blocks, BLOCK_SIZE)
    scales = np.abs(by_block).max(axis=2) / 127  # (N, blocks)
    scales[scales == 0] = 1
    integers = (np.rint(by_block / scales[:, :, None]) + 128).astype(np.uint8)
    return integers, scales
