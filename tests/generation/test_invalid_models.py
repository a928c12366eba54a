"""Model files that break their contract: refused on loading, in a line that names the file."""

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import build_model, model_metadata, randomize
from onnx import numpy_helper

from minigpt.common.errors import UserError
from minigpt.export.onnx_graph import build_proto, serialize
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.torch_backend import TorchBackend
from minigpt.model.checkpoint import save
from minigpt.model.model import MiniGPT
from minigpt.tokenizer import CharTokenizer

SIZES = {"d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 32, "max_seq_len": 16}
TOKENIZER = CharTokenizer("abcdef")


@pytest.fixture(scope="module")
def model() -> MiniGPT:
    torch.manual_seed(0)
    return randomize(build_model(TOKENIZER.vocab_size, **SIZES))


def metadata_with(model: MiniGPT, changes: dict[str, Any]) -> dict[str, Any]:
    metadata = model_metadata(model, TOKENIZER)
    return {**metadata, "config": {**metadata["config"], **changes}}


def write(path: Path, model: MiniGPT, metadata: dict[str, Any]) -> None:
    if path.suffix == ".onnx":
        path.write_bytes(serialize(build_proto(model), metadata))
    else:
        save(path, model.state_dict(), metadata)


def rejection(path: Path) -> str:
    """Return the message of the error of loading `path`, without the path."""
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        OnnxBackend(path) if path.suffix == ".onnx" else TorchBackend.load(path)
    assert time.monotonic() - start < 5
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


WRONG_CONFIG = [
    {"max_seq_len": -1},
    {"max_seq_len": "16"},
    {"max_seq_len": None},
    {"num_layers": 10_000_000},
    {"num_heads": 3},
    {"vocab_size": 11},
    {"vocab_size": 10**12},
    {"bigram_buckets": 10**12},
    {"trigram_buckets": 10**12},
]
CASES = [
    *((suffix, changes) for suffix in (".onnx", ".safetensors") for changes in WRONG_CONFIG),
    (".onnx", {"max_seq_len": 17}),  # no tensor of a checkpoint depends on it
    (".safetensors", {"d_model": 1_000_000}),  # no input of a graph depends on it
]


@pytest.mark.parametrize(("suffix", "changes"), CASES, ids=str)
def test_config_that_does_not_fit_is_rejected(model, tmp_path, suffix, changes):
    path, metadata = tmp_path / f"model{suffix}", metadata_with(model, changes)
    write(path, model, metadata)
    assert "not a model of" in rejection(path) or "not one that" in rejection(path)


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors"])
def test_vocabulary_of_another_size_is_rejected(model, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    metadata = {**metadata_with(model, {}), "tokenizer": CharTokenizer("abc").to_dict()}
    write(path, model, metadata)
    assert "vocab" in rejection(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("suffix", [".onnx", ".safetensors"])
def test_weights_that_are_not_finite_are_rejected(model, tmp_path, suffix, value):
    path, broken = tmp_path / f"model{suffix}", copy.deepcopy(model)
    with torch.no_grad():
        broken.blocks[0].attention.output.weight[0, 0] = value
    write(path, broken, metadata_with(model, {}))
    assert "not finite" in rejection(path)


def rename(proto: onnx.ModelProto, old: str, new: str) -> None:
    """Rename an input everywhere in a graph."""
    for value in proto.graph.input:
        value.name = new if value.name == old else value.name
    for node in proto.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def shorten(proto: onnx.ModelProto, table: str) -> None:
    """Remove the last row of a constant."""
    for constant in proto.graph.initializer:
        if constant.name == table:
            array = numpy_helper.to_array(constant)
            constant.CopyFrom(numpy_helper.from_array(array[:-1], table))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda proto: rename(proto, "input_ids", "ids"), "ids is ('tensor(int64)'"),
        (lambda proto: rename(proto, "past_value_0", "past"), "past is ('tensor(float)'"),
        (lambda proto: proto.graph.output.pop(), "present_value_0 is None"),
        (lambda proto: shorten(proto, "token_embedding"), "cannot be run"),
        (lambda proto: shorten(proto, "positional_encoding"), "cannot be run"),
    ],
    ids=["input", "cache", "output", "embedding", "positions"],
)
def test_graph_with_another_interface_is_rejected(model, tmp_path, change, message):
    path, proto = tmp_path / "model.onnx", build_proto(model)
    change(proto)
    path.write_bytes(serialize(proto, metadata_with(model, {})))
    assert message in rejection(path)


def test_graph_that_fails_on_some_tokens_is_rejected_there(tmp_path):
    model = randomize(build_model(TOKENIZER.vocab_size, **SIZES, bigram_buckets=22))
    path, proto = tmp_path / "model.onnx", build_proto(model)
    buckets = next(
        constant for constant in proto.graph.initializer if constant.name == "bigram.buckets"
    )
    buckets.CopyFrom(
        numpy_helper.from_array(np.array(23), "bigram.buckets")
    )  # but the table has 22
    path.write_bytes(serialize(proto, metadata_with(model, {})))
    cache = OnnxBackend(path).new_cache(1)
    with pytest.raises(UserError, match="cannot be run"):
        cache.prefill(0, np.array([2, 2]), 0)  # in bucket (2 · 10 + 2) % 23
