"""Hostile model files: valid files of small models, changed; their digests are mostly correct."""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import hostile_inputs as inputs
import numpy as np
import onnx
import safetensors.torch
import torch
from conftest import build_model, model_metadata
from onnx import helper, numpy_helper

from minigpt.export.onnx_graph import build_proto, serialize
from minigpt.generation.onnx_digest import append_digest
from minigpt.model import checkpoint
from minigpt.model.model import MiniGPT
from minigpt.tokenizer import BPETokenizer, CharTokenizer

SIZES = {"d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 16, "max_seq_len": 8}


def small_models() -> Iterator[tuple[MiniGPT, dict[str, Any]]]:
    """Yield models of both tokenizers and two architectures with their metadata."""
    char, bpe = CharTokenizer(normalization="NFC"), BPETokenizer(280, "NFC")
    for tokenizer in (char, bpe):
        tokenizer.build_vocab(["The quick brown fox jumps over the lazy dog: the café."])
    for tokenizer, switches in product((char, bpe), ({}, {"positional": "rotary"})):
        torch.manual_seed(0)
        model = build_model(tokenizer.vocab_size, **SIZES, bigram_buckets=7 * len(switches))
        yield model, model_metadata(model, tokenizer, format_version=2)


MODELS = list(small_models())


def metadata_changed(rng: Random, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return other values for a part of the metadata, which JSON can hold."""
    part = rng.choice(["config", "config", "tokenizer", "ngram_table", ""])
    if part == "ngram_table":
        return {**metadata, part: rng.choice([*inputs.VALUES, "eJwDAAAAAAE="])}
    if part == "config":
        key = rng.choice(list(metadata[part]))
        sizes = [7, 10**5, 10**7, 10**12, *inputs.VALUES]
        return {**metadata, part: {**metadata[part], key: rng.choice(sizes)}}
    if part:
        return {**metadata, part: inputs.change(rng, metadata[part])}
    changed = inputs.change(rng, metadata)
    return changed if isinstance(changed, dict) else {}


def tensors_changed(rng: Random, tensors: checkpoint.Tensors) -> checkpoint.Tensors:
    """Return the tensors with one of other values, type or shape, or without it."""
    name = rng.choice(list(tensors))
    tensor = tensors[name]
    others = [
        *[tensor * float("nan"), tensor * float("inf"), tensor[:0], tensor.flatten()],
        *[tensor.half(), tensor.double(), tensor.bool(), tensor.long(), tensor.to(torch.complex64)],
        torch.cat([tensor, tensor]),
    ]
    changed = {**tensors, name: rng.choice(others)}
    if rng.random() < 0.2:
        changed["transformer.wte.weight"] = changed.pop(name)
    return rng.choice([changed] * 9 + [{}])


def checkpoint_file(rng: Random, path: Path) -> None:
    """Write a file in the format of safetensors that MiniGPT did not write."""
    model, metadata = rng.choice(MODELS)
    tensors = dict(model.state_dict())
    kind = rng.choice(["metadata", "tensors", "bytes", "foreign"])
    if kind == "metadata":
        metadata = metadata_changed(rng, metadata)
    if kind == "tensors":
        tensors = tensors_changed(rng, tensors)
    if kind == "foreign":
        texts = [inputs.deep(rng).decode(), "{}", "[]", '{"sha256": 1}', json.dumps(metadata)]
        others = rng.choice([None, {"format": "pt"}, {"minigpt": rng.choice(texts)}])
        path.write_bytes(safetensors.torch.save({"wte.weight": torch.zeros(3, 4)}, others))
        return
    checkpoint.save(path, tensors, metadata)
    if kind == "bytes":
        path.write_bytes(damaged_checkpoint(rng, path.read_bytes()))


def damaged_checkpoint(rng: Random, data: bytes) -> bytes:
    size, header = data[:8], data[8 : 8 + int.from_bytes(data[:8], "little")]
    nested = inputs.deep(rng)
    return rng.choice(
        [
            inputs.damage(rng, data),
            size + inputs.damage(rng, header) + data[8 + len(header) :],
            rng.choice([0, len(header) + 1, 10**8, 2**63]).to_bytes(8, "little") + data[8:],
            len(nested).to_bytes(8, "little") + nested,
            inputs.magic(rng),
        ]
    )


def onnx_file(rng: Random, path: Path) -> None:
    """Write an ONNX file that MiniGPT did not write."""
    model, metadata = rng.choice(MODELS)
    proto = build_proto(model, rng.choice([None, "int8"]))
    match rng.randrange(7):
        case 0:
            path.write_bytes(serialize(proto, metadata_changed(rng, metadata)))
        case 1:
            path.write_bytes(inputs.damage(rng, serialize(proto, metadata)))
        case 2:
            proto = onnx.ModelProto.FromString(serialize(proto, metadata))
            path.write_bytes(append_digest(inputs.damage(rng, proto.SerializeToString())))
        case 3:
            data = serialize(foreign_graph(rng), metadata) if rng.random() < 0.5 else b""
            path.write_bytes(data or foreign_graph(rng).SerializeToString())
        case _:
            change_graph(rng, proto.graph)
            path.write_bytes(serialize(proto, metadata))


def foreign_graph(rng: Random) -> onnx.ModelProto:
    kind = rng.choice([onnx.TensorProto.FLOAT, onnx.TensorProto.STRING])
    values = [helper.make_tensor_value_info(name, kind, ["N"]) for name in ("x", "y")]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "foreign", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def change_graph(rng: Random, graph: onnx.GraphProto) -> None:
    """Change one input, output, weight or node."""
    value, node = rng.choice([*graph.input, *graph.output]), rng.choice(graph.node)
    match rng.randrange(8):
        case 0:  # rename in the whole graph
            old, value.name = value.name, rng.choice(["x", "logits", "input_ids", "past_key_9"])
            for names in (names for node in graph.node for names in (node.input, node.output)):
                names[:] = [value.name if name == old else name for name in names]
        case 1:
            value.type.tensor_type.elem_type = rng.choice([0, 1, 6, 7, 8, 10, 11, 16, 99])
        case 2:
            size = rng.choice(value.type.tensor_type.shape.dim)
            size.dim_value = rng.choice([-1, 0, 1, 7, 10**6, 2**40])
        case 3:
            size = rng.choice(value.type.tensor_type.shape.dim)
            size.dim_param = "N"
        case 4:
            weight = rng.choice(graph.initializer)
            array = numpy_helper.to_array(weight)
            others = [array.ravel(), array.astype(np.float64), array.ravel()[:0], array * 0 + 100]
            others += [array * np.nan] * (array.dtype.kind == "f")
            weight.CopyFrom(numpy_helper.from_array(rng.choice(others), weight.name))
        case 5:
            node.op_type = rng.choice(["Unheard", "Relu", "Identity", "MatMul"])
        case 6:
            graph.node.remove(node)
        case _:
            graph.input.append(helper.make_tensor_value_info("extra", 1, ["B"]))
