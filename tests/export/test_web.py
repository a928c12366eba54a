"""Compare exported graphs in WebAssembly, as browsers run them, with ONNX Runtime in Python."""

import itertools
import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import ARCHITECTURES, NEEDS_NPM, ROOT, build_model, model_metadata, randomize

from minigpt.export.onnx_graph import build_proto, serialize
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.tokenizer import BPETokenizer

# ids of consecutive forward passes: prefill, decode, three draft tokens, decode
PASSES = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [16]]

pytestmark = [pytest.mark.slow, NEEDS_NPM]


def logits_in_web(npm_packages: Path, paths: list[Path]) -> list[list[np.ndarray]]:
    """Return the logits of ONNX files in PASSES, computed by logits.mjs."""
    cases = json.dumps({"models": [str(path) for path in paths], "passes": PASSES})
    command = ["node", str(ROOT / "tests/export/logits.mjs"), str(npm_packages)]
    output = subprocess.run(command, input=cases.encode(), stdout=subprocess.PIPE, check=True)
    return [[np.array(part) for part in model] for model in json.loads(output.stdout)]


def logits_in_python(path: Path) -> list[np.ndarray]:
    cache, lengths = OnnxBackend(path).new_cache(1), np.cumsum([0, *map(len, PASSES)])
    return [
        cache.prefill(0, np.array(ids), length)
        for ids, length in zip(PASSES, lengths, strict=False)
    ]


def keep_activations_exact(proto: onnx.ModelProto) -> None:
    """Let products with int8 matrices use float32 activations, as they do in WebAssembly."""
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1


def test_exported_graphs_have_the_same_logits_in_web(npm_packages, tokenizer, tmp_path):
    bpe = BPETokenizer(300, "NFC")
    bpe.build_vocab(["The naïve 🦊 went to the café."])
    graphs, expected = {}, []
    kinds = itertools.product((tokenizer, bpe), ARCHITECTURES, (None, "int8"))
    for tokens, switches, quantize in kinds:
        torch.manual_seed(0)
        model = randomize(build_model(tokens.vocab_size, **switches))
        metadata, proto = model_metadata(model, tokens), build_proto(model, quantize)
        path = tmp_path / f"{len(graphs)}.onnx"
        path.write_bytes(serialize(proto, metadata))
        graphs[f"{type(tokens).__name__} {switches} {quantize}"] = path
        keep_activations_exact(proto)
        (tmp_path / "exact.onnx").write_bytes(serialize(proto, metadata))
        expected.append(logits_in_python(tmp_path / "exact.onnx"))
    found = logits_in_web(npm_packages, list(graphs.values()))
    for name, ours, theirs in zip(graphs, expected, found, strict=True):
        for here, there in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(there, here, atol=1e-5, rtol=0, err_msg=name)
