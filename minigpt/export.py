"""PyTorch → ONNX: one file that ONNX Runtime alone runs, proved equal to the model it came from.

The file's inputs, outputs and metadata are described in `minigpt/backends/onnx.py`.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from minigpt.backends.onnx import OnnxBackend
from minigpt.backends.torch import TorchBackend
from minigpt.errors import UserError
from minigpt.model import Cache, MiniGPT, MultiHeadAttention

OPSET = 20


class _FlatStep(nn.Module):
    """`MiniGPT.step` with the cache as a flat row of tensors: graphs know nothing else."""

    def __init__(self, model: MiniGPT):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, last_id: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        layers = list(zip(past[0::2], past[1::2], strict=True))
        logits, present = self.model.step(input_ids, Cache(layers, last_id))
        return logits, *(tensor for pair in present.layers for tensor in pair)


def to_onnx(model: MiniGPT, metadata: dict[str, Any]) -> bytes:
    """The model as the bytes of an ONNX file, `metadata` inside; equal models give equal bytes."""
    layers = range(metadata["config"]["num_layers"])
    H = metadata["config"]["num_heads"]
    D = metadata["config"]["d_model"] // H
    names = [f"{kind}_{i}" for i in layers for kind in ("key", "value")]
    # sizes above 1, and all different: the exporter would take 0, 1 or equal ones for constants
    B, T, P = 2, 3, 4
    ids, last_id = torch.zeros(B, T, dtype=torch.int64), torch.zeros(B, 1, dtype=torch.int64)
    example = (ids, last_id, *(torch.zeros(B, H, P, D) for _ in names))
    b, t, p = (torch.export.Dim(name) for name in ("batch", "time", "past"))
    cache_shape = {0: b, 2: p}
    with _formula_attention(model), _quiet():
        program = torch.onnx.export(
            _FlatStep(model),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["input_ids", "past_id", *(f"past_{name}" for name in names)],
            output_names=["logits", *(f"present_{name}" for name in names)],
            dynamic_shapes={"input_ids": {0: b, 1: t}, "last_id": {0: b}, "past": tuple(cache_shape for _ in names)},
        )
    assert program is not None
    graph = program.model_proto
    _strip(graph)
    onnx.helper.set_model_props(graph, {"minigpt": json.dumps(metadata)})
    onnx.checker.check_model(graph, full_check=True)
    return graph.SerializeToString(deterministic=True)


@contextlib.contextmanager
def _formula_attention(model: MiniGPT) -> Iterator[None]:
    """The written-out attention in place of PyTorch's kernel: a simpler graph, no branch on the cache."""
    attentions = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    for attention in attentions:
        attention.fast = False
    try:
        yield
    finally:
        for attention in attentions:
            attention.fast = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own progress and deprecation notices say nothing to a user of MiniGPT."""
    # it misses torchvision, which nothing here needs
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _strip(graph: onnx.ModelProto) -> None:
    """Drop what the exporter notes of its own run, file paths of this machine among it."""
    graph.doc_string = ""
    for item in [*graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.value_info]:
        item.doc_string = ""
        del item.metadata_props[:]
    for tensor in graph.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    del graph.graph.metadata_props[:]
    del graph.metadata_props[:]


def max_logit_difference(torch_backend: TorchBackend, onnx_backend: OnnxBackend, seed: int = 0) -> float:
    """The largest difference of a logit between the backends, over every length 1 … max_seq_len.

    Random ids, batches of 1 to 4; each length is computed without a cache and, from a random point,
    with one.
    """
    rng = np.random.default_rng(seed)
    worst = 0.0
    for length in range(1, torch_backend.max_seq_len + 1):
        shape = (int(rng.integers(1, 5)), length)
        ids = rng.integers(torch_backend.tokenizer.vocab_size, size=shape)
        expected, _ = torch_backend.logits(ids, None)
        whole, _ = onnx_backend.logits(ids, None)
        known = int(rng.integers(length))
        past = onnx_backend.logits(ids[:, :known], None)[1] if known else None
        cached, _ = onnx_backend.logits(ids[:, known:], past)
        worst = max(worst, _gap(whole, expected), _gap(cached, expected[:, known:]))
    return worst


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
