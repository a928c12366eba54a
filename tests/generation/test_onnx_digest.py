"""Damage to ONNX files: refused, or reported as a file without a digest."""

import onnx
import pytest
import torch
from conftest import build_model, model_metadata, randomize
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.export.onnx_graph import to_onnx
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.onnx_digest import ENTRY_LENGTH

SIZES = {"d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 32, "max_seq_len": 16}


@pytest.fixture(scope="module", params=[None, "int8"])
def content(request, tokenizer) -> bytes:
    torch.manual_seed(0)
    model = randomize(build_model(**SIZES))
    return to_onnx(model, model_metadata(model, tokenizer), request.param)


@given(data=st.data())
def test_damaged_onnx_file_is_detected(content, tmp_path_factory, data):
    """Include damage to the digest itself, which leaves the rest of the file intact."""
    damaged = bytearray(content)
    at = data.draw(st.integers(0, len(content) - 1) | st.integers(1, 200).map(lambda n: -n))
    if data.draw(st.booleans()):
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del damaged[at:]
    path = tmp_path_factory.mktemp("damage") / "model.onnx"
    path.write_bytes(damaged)
    try:
        verified = OnnxBackend(path).verified
    except UserError:
        return
    assert not verified
    assert damaged[: len(content) - ENTRY_LENGTH] == content[:-ENTRY_LENGTH]


def test_digest_is_an_entry_of_the_metadata(content):
    properties = onnx.load_model_from_string(content).metadata_props
    assert [entry.key for entry in properties] == ["minigpt", "sha256"]
