"""Checked export: ONNX files that are proven equal, or close, to the model before they are kept."""

import hashlib
from collections.abc import Callable
from typing import Any

from minigpt.export.checks import (
    check_batches,
    check_parity,
    check_quality,
    max_logit_difference,
    opened,
)
from minigpt.export.int8 import BLOCK_SIZE
from minigpt.export.onnx_graph import build_proto, serialize, to_onnx
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.torch_backend import TorchBackend
from minigpt.model.model import MiniGPT


def export(
    model: MiniGPT, metadata: dict[str, Any], tolerance: float, threads: int
) -> tuple[bytes, dict[str, Any]]:
    """Return the content of an ONNX file and figures about it, checked with `threads` threads.

    Raises:
        UserError: A logit differs from the model's by more than `tolerance`.
    """
    data = to_onnx(model, metadata)
    with opened(data, threads) as exported:
        difference = max_logit_difference(TorchBackend(model, exported.tokenizer), exported)
    check_parity(difference, tolerance)
    return data, {
        "max_logit_difference": difference,
        "tolerance": tolerance,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def export_quantized(
    model: MiniGPT,
    metadata: dict[str, Any],
    quantize: str,
    exported: OnnxBackend,
    bits_per_char: Callable[[OnnxBackend], float],
    max_loss: float,
    threads: int,
) -> tuple[bytes, dict[str, float]]:
    """Return the content of a quantized ONNX file and its quality.

    Args:
        model: Model to quantize.
        metadata: Metadata of the file, to which the figures are added.
        quantize: "int8".
        exported: The same model without quantization.
        bits_per_char: Function that measures a backend.
        max_loss: Maximum increase of bits per character, as a share.
        threads: Threads of ONNX Runtime in the checks.

    Raises:
        UserError: The quality loss is larger than `max_loss`, or texts depend on the batch.
    """
    proto = build_proto(model, quantize)
    quantization: dict[str, Any] = {
        "type": quantize,
        "block_size": BLOCK_SIZE,
        "source_sha256": exported.sha256,
    }
    # without the table of draft tokens, which would change the text (see `OnnxBackend`)
    metadata = {name: value for name, value in metadata.items() if name != "ngram_table"}
    unchecked = serialize(proto, {**metadata, "quantization": quantization})
    with opened(unchecked, threads) as quantized:
        check_batches(quantized)
        bits = bits_per_char(quantized)
    expected = bits_per_char(exported)
    check_quality(bits, expected, max_loss)
    quality = {"bits_per_char": bits, "quality_loss": bits / expected - 1}
    return serialize(proto, {**metadata, "quantization": {**quantization, **quality}}), quality
