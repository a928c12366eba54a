"""Stages work with a model that was converted, whose file has no parameters of a training."""

import json
import sys

import numpy as np
import pytest
from conftest import ROOT, build_model, model_metadata

from minigpt.data.token_files import write_meta
from minigpt.export.onnx_graph import to_onnx
from minigpt.model.checkpoint import save
from pipeline import evaluate, quantize
from pipeline.common import paths
from pipeline.tracking.run import Run


@pytest.fixture
def converted(tmp_path, monkeypatch, tokenizer, sentences):
    """Enter a project with both files of a model without the section "train"."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Run, "_open", lambda run: 1 / 0)  # tracking, which may fail, takes seconds
    params = (ROOT / "params.yaml").read_text()
    params = params.replace("max_new_tokens: 300", "max_new_tokens: 3")
    (tmp_path / "params.yaml").write_text(
        params.replace("max_quality_loss: 0.005", "max_quality_loss: 1")
    )
    for folder in (paths.TOKENS, paths.MODEL.parent, paths.REPORTS):
        folder.mkdir(parents=True)
    ids = np.concatenate([tokenizer.encode_array(text) for text in sentences])
    for split in ("train", "val"):
        (paths.TOKENS / f"{split}.bin").write_bytes(ids.astype(np.uint8).tobytes())
    counts = dict.fromkeys(("documents", "characters", "bytes", "tokens", "unknown"), len(ids))
    write_meta(paths.TOKENS, tokenizer, {"train": counts, "val": counts})
    model = build_model(tokenizer.vocab_size, d_model=32, num_layers=1, d_ff=64).eval()
    metadata = model_metadata(model, tokenizer)
    metadata.pop("train", None)
    save(paths.MODEL, model.state_dict(), metadata)
    paths.ONNX_MODEL.write_bytes(to_onnx(model, metadata))


def test_a_converted_model_is_evaluated(converted):
    evaluate.main()
    assert json.loads(paths.EVALUATION.read_text())["loss"] > 0


def test_a_converted_model_is_quantized(converted, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["quantize", "int8"])
    quantize.main()
    assert paths.ONNX_MODEL.with_suffix(".int8.onnx").exists()
