"""The model as an ONNX graph, built by hand: few nodes, each a kernel that does much at once.

What a character costs is half arithmetic and half nodes, of which each adds a microsecond or so;
PyTorch's own exporter makes four times as many. Beside ONNX's own operators these are ONNX Runtime's
(domain com.microsoft):

    SkipSimplifiedLayerNormalization
        x + y + bias, and the RMS norm of it
    GroupQueryAttention
        queries and keys turned (rotary positions), the cache extended, and masked attention over it
    MatMulNBits
        a product with a matrix of 8-bit integers

The inputs, outputs and metadata of the graph are described in `minigpt/generation/onnx_backend.py`. Shapes as
in `minigpt/model/model.py`, and S = max_seq_len. The functions add the part of the model that they are named
after; they take and return names of values in the graph.
"""

import copy
import json
import math
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from minigpt.model.model import FeedForward, MiniGPT, MultiHeadAttention, TransformerBlock
from minigpt.model.variants import NORM_EPS

OPSETS = {"": 23, "com.microsoft": 1}
IR_VERSION = 10
BLOCK = 128  # weights of a row that share a scale, in int8


class Graph:
    """Nodes and constants, in the order in which they are added.

    With `int8` the matrices are stored in 8 bits, and products are computed in 8 bits.
    """

    def __init__(self, int8: bool = False) -> None:
        self.int8 = int8
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Tensor | np.ndarray) -> str:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def node(self, op: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its first output. "ms.X" is X in ONNX Runtime's domain."""
        domain = "com.microsoft" if op.startswith("ms.") else ""
        self.nodes.append(
            helper.make_node(op.removeprefix("ms."), inputs, outputs, domain=domain, **attributes)
        )
        return outputs[0]

    def to_bytes(
        self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto], **texts: str
    ) -> bytes:
        """The file, with `texts` as its metadata; equal graphs give equal bytes."""
        graph = helper.make_graph(
            self.nodes, "minigpt", inputs, outputs, list(self.constants.values())
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        file = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        helper.set_model_props(file, texts)
        onnx.checker.check_model(file)
        return file.SerializeToString(deterministic=True)


def to_onnx(model: MiniGPT, metadata: dict[str, Any], quantize: str | None = None) -> bytes:
    """The model as the bytes of an ONNX file, `metadata` inside; equal models give equal bytes.

    `quantize`: "int8" makes the file a quarter as large, a large model faster, and each a little worse.
    """
    graph = Graph(int8=quantize == "int8")
    model = without_means(model)
    add_model(graph, model)
    V = model.token_embedding.num_embeddings
    ids = ["input_ids", "positions"] + ["previous_ids"] * (model.bigram_embedding is not None)
    attention = _blocks(model)[0].attention
    cache: list[str | int] = [
        "B",
        attention.num_heads,
        model.max_seq_len,
        head_layout(attention)[1],
    ]
    parts = [f"{part}_{layer}" for layer in range(len(model.blocks)) for part in ("key", "value")]
    return graph.to_bytes(
        [_integers(name, ["B", "T"]) for name in ids]
        + [_floats(f"past_{part}", cache) for part in parts],
        [_floats("logits", ["B", "T", V]), *(_floats(f"present_{part}", cache) for part in parts)],
        minigpt=json.dumps(metadata),
    )


def _integers(name: str, shape: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)


def _floats(name: str, shape: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _blocks(model: MiniGPT) -> list[TransformerBlock]:
    return cast(list[TransformerBlock], list(model.blocks))


@torch.no_grad()
def without_means(model: MiniGPT) -> MiniGPT:
    """A model with the same logits, in which each layer norm gets channels whose mean is 0 and adds no bias.

    The layer norm is then an RMS norm, whose kernel takes a quarter of the time. A norm takes the mean away, so
    nothing is lost where whatever is added to x has none; and what a norm adds, the next linear layer can add
    (Ashkboos et al., "SliceGPT", arXiv:2401.15024, section 3.2).
    """
    model = copy.deepcopy(model)
    blocks = _blocks(model)
    tables = [model.token_embedding.weight]
    if model.bigram_embedding is not None:
        tables.append(model.bigram_embedding.embedding.weight)
    if model.positional_encoding is not None:
        tables.append(model.positional_encoding.encoding)
    for table in tables:  # (…, C)
        table.sub_(table.mean(dim=1, keepdim=True))
    for linear in [
        part for block in blocks for part in (block.attention.output, block.feed_forward.linear2)
    ]:
        linear.weight.sub_(linear.weight.mean(dim=0))  # (C, …)
        linear.bias.sub_(linear.bias.mean())
    following = [(block.norm1, block.attention.query_key_value) for block in blocks]
    following += [(block.norm2, block.feed_forward.linear1) for block in blocks]
    for norm, linear in [*following, (model.norm, model.head)]:
        linear.bias.add_(linear.weight @ norm.bias)
        norm.bias.zero_()
    return model


def add_model(graph: Graph, model: MiniGPT) -> None:
    """From the inputs to the outputs, for a model `without_means`."""
    add_lengths(graph)
    x, y = add_embeddings(graph, model)
    blocks = _blocks(model)
    x, normed = add_norm(graph, "blocks.0.norm1", blocks[0].norm1, x, y)
    norms = [*(block.norm1 for block in blocks[1:]), model.norm]  # the one after each block
    for layer, (block, norm) in enumerate(zip(blocks, norms, strict=True)):
        name = f"blocks.{layer}"
        y = add_attention(graph, f"{name}.attention", block.attention, normed, layer)
        x, normed = add_norm(graph, f"{name}.norm2", block.norm2, x, y, block.attention.output.bias)
        y = add_feed_forward(graph, f"{name}.feed_forward", block.feed_forward, normed)
        x, normed = add_norm(graph, f"{name}.end", norm, x, y, block.feed_forward.linear2.bias)
    add_linear(graph, "logits", model.head.weight, normed, model.head.bias)


def add_lengths(graph: Graph) -> None:
    """last (B,) and length (): each row's last position, and how many positions the longest row has now.

    The attention kernel wants them as 32-bit integers.
    """
    last = graph.node(
        "Gather", ["positions", graph.constant("minus_one", np.array(-1))], "last_position", axis=1
    )
    graph.node("Cast", [last], "last", to=TensorProto.INT32)
    longest = graph.node("ReduceMax", ["last"], "longest", keepdims=0)
    graph.node("Add", [longest, graph.constant("one", np.array(1, dtype=np.int32))], "length")


def add_embeddings(graph: Graph, model: MiniGPT) -> tuple[str, str]:
    """Two values, each (B, T, C), of which x is the sum: the first norm takes two."""
    tokens = model.token_embedding.weight
    if model.bigram_embedding is None and model.positional_encoding is None:
        half = graph.node(
            "Gather", [graph.constant("half_token_embedding", tokens / 2), "input_ids"], "half"
        )
        return half, half
    parts = [
        graph.node("Gather", [graph.constant("token_embedding", tokens), "input_ids"], "token")
    ]
    if model.bigram_embedding is not None:
        V, buckets = (
            np.array(size)
            for size in (model.bigram_embedding.vocab_size, model.bigram_embedding.buckets)
        )
        row = graph.node("Mul", ["previous_ids", graph.constant("vocab_size", V)], "row")
        pair = graph.node("Add", [row, "input_ids"], "pair")
        bucket = graph.node("Mod", [pair, graph.constant("buckets", buckets)], "bucket")
        table = graph.constant("bigram_embedding", model.bigram_embedding.embedding.weight)
        parts.append(graph.node("Gather", [table, bucket], "bigram"))
    if model.positional_encoding is not None:
        table = graph.constant("positional_encoding", model.positional_encoding.encoding)
        parts.append(graph.node("Gather", [table, "positions"], "position"))
    while len(parts) > 2:
        parts[:2] = [graph.node("Add", parts[:2], "token_and_bigram")]
    return parts[0], parts[1]


def add_norm(
    graph: Graph, name: str, norm: nn.LayerNorm, x: str, y: str, bias: Tensor | None = None
) -> tuple[str, str]:
    """x + y + bias and the norm of it, each (B, T, C), of a model `without_means`."""
    assert not norm.bias.any()
    inputs = [x, y, graph.constant(f"{name}.weight", norm.weight)]
    if bias is not None:
        inputs.append(graph.constant(f"{name}.added_bias", bias))
    outputs = f"{name}.normed", "", "", f"{name}.sum"
    graph.node("ms.SkipSimplifiedLayerNormalization", inputs, *outputs, epsilon=norm.eps)
    return f"{name}.sum", f"{name}.normed"


def add_linear(
    graph: Graph, output: str, weight: Tensor, x: str, bias: Tensor | None = None
) -> str:
    """x Wᵀ + b: weight (N, K), x (B, T, K) → (B, T, N)."""
    if graph.int8:
        return add_int8_linear(graph, output, weight, x, bias)
    product = output if bias is None else f"{output}.product"
    graph.node("MatMul", [x, graph.constant(f"{output}.weight", weight.T)], product)
    if bias is not None:
        graph.node("Add", [product, graph.constant(f"{output}.bias", bias)], output)
    return output


def add_int8_linear(graph: Graph, output: str, weight: Tensor, x: str, bias: Tensor | None) -> str:
    """As `add_linear`, each `BLOCK` weights of a row as 8-bit integers around 128 with one scale."""
    N, K = weight.shape
    blocks = -(-K // BLOCK)
    padded = np.zeros((N, blocks * BLOCK), dtype=np.float32)
    padded[:, :K] = weight.detach().cpu().numpy()
    by_block = padded.reshape(N, blocks, BLOCK)
    scales = np.abs(by_block).max(axis=2) / 127
    scales[scales == 0] = 1
    integers = (np.rint(by_block / scales[:, :, None]) + 128).astype(np.uint8)
    inputs = [
        x,
        graph.constant(f"{output}.weight", integers),
        graph.constant(f"{output}.scales", scales),
        "",
        "",
    ]
    if bias is not None:
        inputs.append(graph.constant(f"{output}.bias", bias))
    # level 4: activations become 8-bit integers too; at any other level the kernel is many times slower
    return graph.node(
        "ms.MatMulNBits", inputs, output, K=K, N=N, bits=8, block_size=BLOCK, accuracy_level=4
    )


def add_feed_forward(graph: Graph, name: str, feed_forward: FeedForward, x: str) -> str:
    """(B, T, C) → (B, T, C), without the bias of `linear2`, which the next norm adds."""
    hidden = add_linear(
        graph, f"{name}.linear1", feed_forward.linear1.weight, x, feed_forward.linear1.bias
    )
    hidden = graph.node("Relu", [hidden], f"{name}.relu")
    return add_linear(graph, f"{name}.linear2", feed_forward.linear2.weight, hidden)


def add_attention(
    graph: Graph, name: str, attention: MultiHeadAttention, x: str, layer: int
) -> str:
    """(B, T, C) → (B, T, C), without the bias of `output`, which the next norm adds; the cache goes in and out."""
    H, C = attention.num_heads, attention.output.in_features
    D, E, places = head_layout(attention)

    def widen(heads: Tensor) -> Tensor:
        """(…, D) → (…, E), the D channels in their places and zeros between."""
        wide = heads.new_zeros(*heads.shape[:-1], E)
        wide[..., places] = heads
        return wide

    weight, bias = attention.query_key_value.weight, attention.query_key_value.bias
    weight = widen(weight.view(3 * H, D, C).transpose(1, 2)).transpose(1, 2).reshape(3 * H * E, C)
    qkv = add_linear(
        graph, f"{name}.query_key_value", weight, x, widen(bias.view(3 * H, D)).flatten()
    )
    if attention.qk_norm:
        qkv = add_query_key_norm(graph, name, attention, qkv)
    inputs = [qkv, "", "", f"past_key_{layer}", f"past_value_{layer}", "last", "length"]
    options: dict[str, Any] = {"num_heads": H, "kv_num_heads": H, "scale": 1 / math.sqrt(D)}
    if attention.rotary is not None:
        angles = {"cos": attention.rotary.cos, "sin": attention.rotary.sin}  # (S, D/2)
        inputs += [
            graph.constant(key, nn.functional.pad(value, (0, E // 2 - D // 2)))
            for key, value in angles.items()
        ]
        options["do_rotary"] = 1
    outputs = f"{name}.attended", f"present_key_{layer}", f"present_value_{layer}"
    attended = graph.node("ms.GroupQueryAttention", inputs, *outputs, **options)
    weight = widen(attention.output.weight.view(C, H, D)).reshape(C, H * E)
    return add_linear(graph, f"{name}.output", weight, attended)


def add_query_key_norm(graph: Graph, name: str, attention: MultiHeadAttention, qkv: str) -> str:
    """(B, T, 3·H·E) → the same, with the RMS norm of each query and key."""
    H, (D, E, _) = attention.num_heads, head_layout(attention)
    heads = graph.node(
        "Reshape", [qkv, graph.constant("by_head", np.array([0, 0, 3 * H, E]))], f"{name}.heads"
    )
    sizes = graph.constant("queries_keys_and_values", np.array([2 * H, H]))
    graph.node("Split", [heads, sizes], f"{name}.query_key", f"{name}.value", axis=2)
    # the mean is taken over all E channels, of which E - D are zero: both it and epsilon are E/D times too small
    scale = graph.constant("query_key_scale", np.full(E, math.sqrt(D / E), dtype=np.float32))
    epsilon = NORM_EPS * D / E
    normed = graph.node(
        "RMSNormalization",
        [f"{name}.query_key", scale],
        f"{name}.query_key_normed",
        epsilon=epsilon,
    )
    heads = graph.node("Concat", [normed, f"{name}.value"], f"{name}.normed_heads", axis=2)
    return graph.node(
        "Reshape", [heads, graph.constant("packed", np.array([0, 0, -1]))], f"{name}.packed"
    )


def head_layout(attention: MultiHeadAttention) -> tuple[int, int, np.ndarray]:
    """D, E, and where a head's D channels lie among the E that it has in the graph.

    The attention kernel wants a multiple of 8, or of 16 where it turns channel i with i + E/2, so heads of
    another size are filled up with zeros, half by half.
    """
    D = attention.output.in_features // attention.num_heads
    multiple = 8 if attention.rotary is None else 16
    E = -(-D // multiple) * multiple
    half = -(-D // 2)
    return D, E, np.array([i if i < half else E // 2 + i - half for i in range(D)])
