"""Export of a model to ONNX: a graph built by hand of few nodes, each a fused kernel.

About half of the time per character is arithmetic; the rest is per-node overhead, about a
microsecond each. PyTorch's exporter creates four times as many nodes. In float32, the positions of
all sequences are the rows of matrices (R, C), R = B·T, except in attention: `Gemm` requires this,
adds the bias in the same node, and ONNX Runtime merges a following ReLU into it. In int8, values
remain (B, T, C). Besides ONNX's operators, the graph uses these of ONNX Runtime (com.microsoft):

    SkipSimplifiedLayerNormalization
        x + y + bias, and its RMS norm
    GroupQueryAttention
        rotary positions, KV cache update and masked attention
    MatMulNBits
        product with a matrix of 8-bit integers (`int8.py`)

Its build for browsers has these operators too (`tests/export/test_web.py`), except that MatMulNBits
computes in float32 there.

`minigpt/generation/onnx_backend.py` describes inputs, outputs and metadata. Shapes are those of
`minigpt/model/model.py`; S = max_seq_len, and E ≥ D is the padded size of a head (`head_layout`).
Each `add_…` function adds the part of the model in its name; it takes and returns names of values
in the graph. Their shapes are given for float32.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from minigpt.export.int8 import BLOCK_SIZE, quantize_blocks
from minigpt.generation.onnx_digest import append_digest
from minigpt.model.model import FeedForward, MiniGPT, MultiHeadAttention, TransformerBlock
from minigpt.model.variants import NEVER, NORM_EPS, NgramEmbedding, gelu
from minigpt.tokenizer import EOS

OPSETS = {"": 23, "com.microsoft": 1}
IR_VERSION = 10
PREVIOUS_IDS = ("previous_ids", "second_previous_ids")  # inputs for n-grams, the nearest first

# Inputs or outputs of a graph: name → element type and shape
Shape = Sequence[str | int]
Values = Mapping[str, tuple[int, Shape]]


class Graph:
    """Nodes and constants of an ONNX graph, in the order in which they are added.

    Args:
        int8: Store matrices, and compute products, in 8 bits.
    """

    def __init__(self, int8: bool = False) -> None:
        self.int8 = int8
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.shapes: dict[str, Shape] = {}  # of values within the graph that are not inferred

    def constant(self, name: str, value: Tensor | np.ndarray) -> str:
        """Add a constant and return its name."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def node(self, op: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """Add a node and return its first output; "ms.X" is the operator X of ONNX Runtime."""
        domain = "com.microsoft" if op.startswith("ms.") else ""
        self.nodes.append(
            helper.make_node(op.removeprefix("ms."), inputs, outputs, domain=domain, **attributes)
        )
        return outputs[0]

    def to_proto(self, inputs: Values, outputs: Values) -> onnx.ModelProto:
        """Return the graph as a valid ONNX model."""
        intermediate = {name: (TensorProto.FLOAT, shape) for name, shape in self.shapes.items()}
        graph = helper.make_graph(
            self.nodes,
            "minigpt",
            _describe(inputs),
            _describe(outputs),
            initializer=list(self.constants.values()),
            value_info=_describe(intermediate),
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        onnx.checker.check_model(proto)
        return proto


def _describe(values: Values) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, *kind) for name, kind in values.items()]


def to_onnx(model: MiniGPT, metadata: dict[str, Any], quantize: str | None = None) -> bytes:
    """Return the content of an ONNX file; equal models and metadata give equal bytes."""
    return serialize(build_proto(model, quantize), metadata)


def serialize(proto: onnx.ModelProto, metadata: dict[str, Any]) -> bytes:
    """Return the content of an ONNX file with `metadata` and a digest in it."""
    helper.set_model_props(proto, {"minigpt": json.dumps(metadata)})
    return append_digest(proto.SerializeToString(deterministic=True))


def build_proto(model: MiniGPT, quantize: str | None = None) -> onnx.ModelProto:
    """Return the model as ONNX; `quantize="int8"` stores its matrices in 8 bits."""
    graph = Graph(int8=quantize == "int8")
    model = fold_layer_norms(model)
    add_model(graph, model)
    V = model.token_embedding.num_embeddings
    distance = max((len(embedding.factors) for embedding in _ngrams(model).values()), default=0)
    ids = ["input_ids", "positions", *PREVIOUS_IDS[:distance]]
    attention = _blocks(model)[0].attention
    _, E, _ = head_layout(attention)
    cache: Shape = ["B", attention.num_heads, model.max_seq_len, E]
    parts = [f"{part}_{layer}" for layer in range(len(model.blocks)) for part in ("key", "value")]
    inputs: Values = {
        **{name: (TensorProto.INT64, ["B", "T"]) for name in ids},
        **{f"past_{part}": (TensorProto.FLOAT, cache) for part in parts},
    }
    outputs: Values = {
        "logits": (TensorProto.FLOAT, ["B", "T", V]),
        **{f"present_{part}": (TensorProto.FLOAT, cache) for part in parts},
    }
    return graph.to_proto(inputs, outputs)


def _ngrams(model: MiniGPT) -> dict[str, NgramEmbedding]:
    embeddings = {"bigram": model.bigram_embedding, "trigram": model.trigram_embedding}
    return {name: embedding for name, embedding in embeddings.items() if embedding is not None}


def _blocks(model: MiniGPT) -> list[TransformerBlock]:
    return cast(list[TransformerBlock], list(model.blocks))


@torch.no_grad()
def fold_layer_norms(model: MiniGPT) -> MiniGPT:
    """Return a model with the same logits whose layer norms are RMS norms without bias.

    The kernel of an RMS norm takes a quarter of the time. A layer norm subtracts the mean over the
    channels and adds a bias. The mean is zero if everything that is added to x has mean zero, and
    the bias can be added by the next linear layer instead (Ashkboos et al., "SliceGPT",
    arXiv:2401.15024, section 3.2).
    """
    model = copy.deepcopy(model)
    blocks = _blocks(model)
    tables = [model.token_embedding.weight]
    tables += [embedding.embedding.weight for embedding in _ngrams(model).values()]
    if model.positional_encoding is not None:
        tables.append(model.positional_encoding.encoding)
    if model.config.single_special_token:
        model.token_embedding.weight[:EOS] = model.token_embedding.weight[EOS]
    head = model.head = separate_head(model)
    for table in tables:  # (…, C)
        table.sub_(table.mean(dim=1, keepdim=True))
    outputs = [block.attention.output for block in blocks]
    outputs += [block.feed_forward.linear2 for block in blocks]
    for linear in outputs:
        linear.weight.sub_(linear.weight.mean(dim=0))  # (C, …)
        linear.bias.sub_(linear.bias.mean())  # (C,)
    following = [(block.norm1, block.attention.query_key_value) for block in blocks]
    following += [(block.norm2, block.feed_forward.linear1) for block in blocks]
    for norm, linear in [*following, (model.norm, head)]:
        linear.bias.add_(linear.weight @ norm.bias)
        norm.bias.zero_()
    return model


def separate_head(model: MiniGPT) -> nn.Linear:
    """Return the head as a linear layer with a matrix of its own and a bias."""
    V, C = model.head.weight.shape
    head = nn.Linear(C, V, device="meta").to_empty(device="cpu")  # without initial values
    head.weight.copy_(model.head.weight)
    if model.head.bias is None:
        head.bias.zero_()
    else:
        head.bias.copy_(model.head.bias)
    if model.config.single_special_token:
        head.weight[:EOS], head.bias[:EOS] = 0, NEVER
    return head


def add_model(graph: Graph, model: MiniGPT) -> None:
    """Add everything from inputs to outputs, for a model with folded layer norms."""
    add_shapes(graph, model.max_seq_len)
    x, y = add_embeddings(graph, model)
    blocks = _blocks(model)
    x, normed = add_norm(graph, "blocks.0.norm1", blocks[0].norm1, x, y)
    norms = [*(block.norm1 for block in blocks[1:]), model.norm]  # the norm after each block
    for layer, (block, norm) in enumerate(zip(blocks, norms, strict=True)):
        name = f"blocks.{layer}"
        y = add_attention(graph, f"{name}.attention", block.attention, normed, layer)
        x, normed = add_norm(graph, f"{name}.norm2", block.norm2, x, y, block.attention.output.bias)
        y = add_feed_forward(graph, f"{name}.feed_forward", block.feed_forward, normed)
        x, normed = add_norm(graph, f"{name}.end", norm, x, y, block.feed_forward.linear2.bias)
    head = cast(nn.Linear, model.head)
    add_batched_linear(graph, "logits", head.weight, normed, head.bias)


def add_shapes(graph: Graph, max_seq_len: int) -> None:
    """Add the integers that attention needs.

    last (B,) is the last position of each sequence, and batch_shape (3,) is B, T and -1. length ()
    should be that of the longest sequence, but the kernel only allocates by it, and compares it
    with T to recognize prompts; so it can be constant.
    """
    last = graph.node(
        "Gather", ["positions", graph.constant("minus_one", np.array(-1))], "last_position", axis=1
    )
    graph.node("Cast", [last], "last", to=TensorProto.INT32)
    graph.constant("length", np.array(max_seq_len, dtype=np.int32))
    if not graph.int8:
        shape = graph.node("Shape", ["positions"], "positions_shape")
        channels = graph.constant("channels", np.array([-1]))
        graph.node("Concat", [shape, channels], "batch_shape", axis=0)


def flatten(graph: Graph, x: str) -> str:
    """Return the rows of x: (B, T, C) → (R, C)."""
    return x if graph.int8 else graph.node("Flatten", [x], f"{x}.rows", axis=2)


def add_embeddings(graph: Graph, model: MiniGPT) -> tuple[str, str]:
    """Return two values (R, C) whose sum is x: the kernel of the first norm adds two values."""
    tokens = model.token_embedding.weight
    if not _ngrams(model) and model.positional_encoding is None:
        half = graph.node(
            "Gather", [graph.constant("half_token_embedding", tokens / 2), "input_ids"], "half"
        )
        rows = flatten(graph, half)
        return rows, rows
    parts = [
        graph.node("Gather", [graph.constant("token_embedding", tokens), "input_ids"], "token")
    ]
    parts += [
        add_ngram_embedding(graph, name, embedding) for name, embedding in _ngrams(model).items()
    ]
    if model.positional_encoding is not None:
        table = graph.constant("positional_encoding", model.positional_encoding.encoding)
        parts.append(graph.node("Gather", [table, "positions"], "position"))
    while len(parts) > 2:
        parts[:2] = [graph.node("Add", parts[:2], f"{parts[0]}_and_{parts[1]}")]
    return flatten(graph, parts[0]), flatten(graph, parts[1])


def add_ngram_embedding(graph: Graph, name: str, ngram: NgramEmbedding) -> str:
    """Add the embedding of the n-gram that ends at each id: (B, T, C)."""
    key = "input_ids"
    for previous, factor in zip(PREVIOUS_IDS, ngram.factors, strict=False):
        number = graph.constant(f"{name}.{previous}.factor", np.array(factor))
        product = graph.node("Mul", [previous, number], f"{name}.{previous}.product")
        key = graph.node("Add", [product, key], f"{name}.{previous}.key")
    buckets = graph.constant(f"{name}.buckets", np.array(ngram.buckets))
    bucket = graph.node("Mod", [key, buckets], f"{name}.bucket")
    table = graph.constant(f"{name}_embedding", ngram.embedding.weight)
    return graph.node("Gather", [table, bucket], name)


def add_norm(
    graph: Graph, name: str, norm: nn.LayerNorm, x: str, y: str, bias: Tensor | None = None
) -> tuple[str, str]:
    """Return x + y + bias and its norm, each (R, C); the norm must be folded."""
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
    """Add x Wᵀ + b: weight (N, K), x (R, K) → (R, N)."""
    if graph.int8:
        integers, scales = quantize_blocks(weight.detach().cpu().numpy())
        inputs = [
            x,
            graph.constant(f"{output}.weight", integers),
            graph.constant(f"{output}.scales", scales),
            *["", ""],  # optional inputs that are left out
        ]
        if bias is not None:
            inputs.append(graph.constant(f"{output}.bias", bias))
        sizes = {"N": weight.shape[0], "K": weight.shape[1], "bits": 8, "block_size": BLOCK_SIZE}
        # level 4: activations are in 8 bits too; at other levels the kernel is many times slower
        return graph.node("ms.MatMulNBits", inputs, output, **sizes, accuracy_level=4)
    inputs = [x, graph.constant(f"{output}.weight", weight.T)]
    if bias is not None:
        inputs.append(graph.constant(f"{output}.bias", bias))
    return graph.node("Gemm", inputs, output)


def add_batched_linear(graph: Graph, output: str, weight: Tensor, x: str, bias: Tensor) -> str:
    """Add x Wᵀ + b: weight (N, K), x (R, K) → (B, T, N)."""
    if graph.int8:
        return add_linear(graph, output, weight, x, bias)
    rows = add_linear(graph, f"{output}.rows", weight, x, bias)
    if output != "logits":  # ONNX Runtime 1.30 does not infer the channels, which attention needs
        graph.shapes[output] = ["B", "T", len(weight)]
    return graph.node("Reshape", [rows, "batch_shape"], output)


def add_feed_forward(graph: Graph, name: str, feed_forward: FeedForward, x: str) -> str:
    """Add the feed-forward network: (R, C) → (R, C).

    The bias of `linear2` is left to the next norm.
    """
    hidden = add_linear(
        graph, f"{name}.linear1", feed_forward.linear1.weight, x, feed_forward.linear1.bias
    )
    if feed_forward.activation is gelu:
        hidden = graph.node("Gelu", [hidden], f"{name}.gelu", approximate="tanh")
    else:
        hidden = graph.node("Relu", [hidden], f"{name}.relu")
    return add_linear(graph, f"{name}.linear2", feed_forward.linear2.weight, hidden)


def add_attention(
    graph: Graph, name: str, attention: MultiHeadAttention, x: str, layer: int
) -> str:
    """Add attention and the update of its KV cache: (R, C) → (R, C).

    The bias of `output` is left to the next norm.
    """
    H, C = attention.num_heads, attention.output.in_features
    D, E, channels = head_layout(attention)

    def widen(heads: Tensor) -> Tensor:
        """Pad each head with zeros: (…, D) → (…, E)."""
        wide = heads.new_zeros(*heads.shape[:-1], E)
        wide[..., channels] = heads
        return wide

    weight, bias = attention.query_key_value.weight, attention.query_key_value.bias
    weight = weight.view(3 * H, D, C).transpose(1, 2)  # (3·H, C, D)
    weight = widen(weight).transpose(1, 2).reshape(3 * H * E, C)  # (3·H·E, C)
    qkv = add_batched_linear(
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
    weight = widen(attention.output.weight.view(C, H, D)).reshape(C, H * E)  # (C, H·E)
    return add_linear(graph, f"{name}.output", weight, flatten(graph, attended))


def add_query_key_norm(graph: Graph, name: str, attention: MultiHeadAttention, qkv: str) -> str:
    """Add the RMS norm of each query and key: (B, T, 3·H·E) → (B, T, 3·H·E)."""
    H, (D, E, _) = attention.num_heads, head_layout(attention)
    heads = graph.node(
        "Reshape", [qkv, graph.constant("by_head", np.array([0, 0, 3 * H, E]))], f"{name}.heads"
    )
    sizes = graph.constant("queries_keys_and_values", np.array([2 * H, H]))
    graph.node("Split", [heads, sizes], f"{name}.query_key", f"{name}.value", axis=2)
    # The kernel's mean square is over E channels, of which E - D are zero: D/E of that over D
    # channels. So epsilon is scaled by D/E, and the result by √(D/E).
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
    """Return D, the padded size E, and the indices of a head's D channels among the E in the graph.

    The attention kernel requires a multiple of 8, or with rotary positions, which rotate channels i
    and i + E/2 together, of 16. Other heads are padded with zeros, each half for itself.
    """
    D = attention.output.in_features // attention.num_heads
    multiple = 8 if attention.rotary is None else 16
    E = -(-D // multiple) * multiple
    half = -(-D // 2)
    return D, E, np.array([i if i < half else E // 2 + i - half for i in range(D)])
