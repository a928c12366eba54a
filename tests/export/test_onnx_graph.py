"""Compare parts of the ONNX graph with PyTorch; test_checks.py compares whole models."""

import itertools
from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import build_model, model_metadata, randomize
from onnx import TensorProto
from torch import nn

from minigpt.evaluation.evaluate import predict
from minigpt.export import onnx_graph as parts
from minigpt.export.checks import logits_of
from minigpt.export.onnx_graph import Graph, to_onnx
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.model.model import MiniGPT

TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}


def run(
    graph: Graph, inputs: dict[str, np.ndarray], *outputs: str, shape: str = "RN"
) -> list[np.ndarray]:
    """Run a graph; `shape` is that of the outputs other than caches."""
    values = {name: (TYPES[value.dtype], value.shape) for name, value in inputs.items()}
    wanted = {
        name: (TensorProto.FLOAT, "BHSE" if name.startswith("present") else shape)
        for name in outputs
    }
    session = onnxruntime.InferenceSession(graph.to_proto(values, wanted).SerializeToString())
    return session.run(list(outputs), inputs)


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def model(**switches) -> MiniGPT:
    torch.manual_seed(0)
    sizes = {"d_model": 24, "num_heads": 2, "num_layers": 2, "d_ff": 40, "max_seq_len": 16}
    return randomize(build_model(30, **{**sizes, **switches}))


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layer_matches_pytorch(bias):
    graph, linear, x = Graph(), nn.Linear(24, 40, bias=bias), tensor(6, 24)
    parts.add_linear(graph, "y", linear.weight, "x", linear.bias)
    (y,) = run(graph, {"x": x.numpy()}, "y")
    np.testing.assert_allclose(y, linear(x).detach(), atol=1e-5)


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (128, 7), (300, 64)])
def test_int8_linear_layer_approximates_pytorch(inputs, outputs):
    """Allow for rounding to 1/127 of the largest value in each block."""
    graph, linear, x = Graph(int8=True), nn.Linear(inputs, outputs), tensor(2, 3, inputs)
    parts.add_linear(graph, "y", linear.weight, "x", linear.bias)
    (y,) = run(graph, {"x": x.numpy()}, "y", shape="BTN")
    error = y - linear(x).detach().numpy()
    assert np.sqrt((error**2).mean()) < 0.01 * linear(x).std().item()


@pytest.mark.parametrize(
    "switches",
    [{}, {"positional": "rotary", "qk_norm": True, "bigram_buckets": 97, "trigram_buckets": 89}],
    ids=str,
)
def test_folded_layer_norms_keep_the_logits(switches):
    original = model(**switches)
    changed = parts.fold_layer_norms(original)
    ids = torch.randint(30, (2, 16))
    seen = []
    norms = [module for module in changed.modules() if isinstance(module, nn.LayerNorm)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    torch.testing.assert_close(changed(ids), original(ids), atol=1e-4, rtol=0)
    assert len(seen) == len(norms) == 5
    assert max(x.mean(dim=2).abs().max() for x in seen) < 1e-5
    assert not any(norm.bias.any() for norm in norms)


@pytest.mark.parametrize("bias", [True, False])
def test_residual_layer_norm_matches_pytorch(bias):
    graph, norm = Graph(), nn.LayerNorm(24)
    nn.init.normal_(norm.weight)
    x, y, added = (
        values - values.mean(dim=-1, keepdim=True) for values in (*tensor(2, 6, 24), tensor(24))
    )
    added = added if bias else None
    names = parts.add_norm(graph, "norm", norm, "x", "y", added)
    total, normed = run(graph, {"x": x.numpy(), "y": y.numpy()}, *names)
    expected = x + y + (added if bias else 0)
    np.testing.assert_allclose(total, expected, atol=1e-6)
    np.testing.assert_allclose(normed, norm(expected).detach(), atol=1e-5)


def test_feed_forward_network_matches_pytorch():
    graph, block, x = Graph(), model().blocks[0], tensor(6, 24)
    (y,) = run(
        graph, {"x": x.numpy()}, parts.add_feed_forward(graph, "ff", block.feed_forward, "x")
    )
    expected = block.feed_forward(x) - block.feed_forward.linear2.bias
    np.testing.assert_allclose(y, expected.detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("positional", "ngrams"),
    list(
        itertools.product(
            ["sinusoidal", "rotary"],
            [{}, {"bigram_buckets": 97}, {"trigram_buckets": 89}],
        )
    ),
    ids=str,
)
def test_embeddings_match_pytorch(positional, ngrams):
    graph, gpt = Graph(), model(positional=positional, **ngrams)
    ids, positions = np.array([[5, 6, 29], [7, 5, 5]]), np.array([[0, 1, 2]] * 2)
    inputs = {
        "input_ids": ids,
        "positions": positions,
        "previous_ids": np.array([[0, 5, 6], [0, 7, 5]]),
        "second_previous_ids": np.array([[0, 0, 5], [0, 0, 7]]),
    }
    names = parts.add_embeddings(graph, gpt)
    x, y = run(graph, inputs, *names) if names[0] != names[1] else run(graph, inputs, names[0]) * 2
    seen = []
    gpt.blocks[0].register_forward_pre_hook(lambda block, arguments: seen.append(arguments[0]))
    gpt(torch.from_numpy(ids))
    np.testing.assert_allclose(x + y, seen[0].detach().flatten(0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("heads", "positional", "qk_norm"),
    [
        (2, "sinusoidal", False),
        (2, "rotary", False),
        (2, "sinusoidal", True),
        (6, "rotary", True),
        (24, "sinusoidal", True),
    ],
)
def test_cached_attention_matches_pytorch(heads, positional, qk_norm):
    """Cover heads of 12, 4 and 1 channels, all padded for the kernel."""
    graph, gpt = Graph(), model(num_heads=heads, positional=positional, qk_norm=qk_norm)
    attention = gpt.blocks[0].attention
    parts.add_shapes(graph, gpt.max_seq_len)
    name = parts.add_attention(graph, "attention", attention, "x", 0)
    _, channels, _ = parts.head_layout(attention)
    cache = np.zeros((1, heads, 16, channels), dtype=np.float32)
    caches = {"past_key_0": cache, "past_value_0": cache}
    x = tensor(1, 9, 24)
    expected = (attention(x) - attention.output.bias).detach().numpy()
    for start, end in ((0, 4), (4, 5), (5, 9)):
        inputs = {"x": x[0, start:end].numpy(), "positions": np.arange(start, end)[None], **caches}
        y, *present = run(graph, inputs, name, "present_key_0", "present_value_0")
        np.testing.assert_allclose(y, expected[0, start:end], atol=1e-5)
        caches = dict(zip(caches, present, strict=True))


@pytest.fixture(scope="module")
def int8_comparison(trained, tokenizer, sentences, tmp_path_factory):
    """Return the losses and the file sizes of the float32 and the int8 model."""
    folder = tmp_path_factory.mktemp("int8")
    metadata = model_metadata(trained.model, tokenizer)
    texts = [tokenizer.encode_array(text)[None, :65] for text in sentences[:10]]
    losses, sizes = [], []
    for quantize in (None, "int8"):
        path = folder / f"{quantize}.onnx"
        path.write_bytes(to_onnx(trained.model, metadata, quantize=quantize))
        pairs = [(ids[:, :-1], ids[:, 1:]) for ids in texts]
        losses.append(predict(partial(logits_of, OnnxBackend(path)), pairs)["loss"].mean())
        sizes.append(path.stat().st_size)
    return losses, sizes


def test_int8_model_has_nearly_the_same_loss(int8_comparison):
    losses, _ = int8_comparison
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


def test_int8_model_is_less_than_half_the_size(int8_comparison):
    _, sizes = int8_comparison
    assert sizes[1] < 0.5 * sizes[0]
