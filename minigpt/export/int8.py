"""Quantization of matrices to 8-bit integers."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from minigpt.export.onnx_graph import Graph

BLOCK_SIZE = 128  # weights of a row that share a scale


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def add_int8_linear(
    graph: "Graph", output: str, weight: Tensor, x: str, bias: Tensor | None
) -> str:
    """Like `add_linear`, with quantized weights."""
    N, K = weight.shape
    integers, scales = quantize(weight.detach().cpu().numpy())
    inputs = [
        x,
        graph.constant(f"{output}.weight", integers),
        graph.constant(f"{output}.scales", scales),
        "",
        "",
    ]
    if bias is not None:
        inputs.append(graph.constant(f"{output}.bias", bias))
    # level 4: quantize activations to 8 bits too; at other levels the kernel is many times slower
    return graph.node(
        "ms.MatMulNBits", inputs, output, K=K, N=N, bits=8, block_size=BLOCK_SIZE, accuracy_level=4
    )
