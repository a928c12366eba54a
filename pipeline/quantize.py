"""Stage quantize@int8: write a quantized copy of the exported model, if it is nearly as good."""

import argparse
import json
import logging
from functools import partial

from minigpt.common.config import load_params
from minigpt.common.files import atomic_write
from minigpt.data.batches import Batches
from minigpt.data.token_files import Tokens
from minigpt.evaluation.evaluate import predict, summarize
from minigpt.export.checks import logits_of
from minigpt.export.export import export_quantized
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.model.checkpoint import load_model
from minigpt.tokenizer import tokenizer_from_dict
from pipeline.common import paths
from pipeline.common.stage import run_stage
from pipeline.common.threads import use_threads
from pipeline.tracking.run import Run

log = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.quantize")
    parser.add_argument("format", choices=["int8"])
    name = parser.parse_args().format
    params = load_params()
    config, threads = params.quantize, use_threads(params.threads)
    model, metadata = load_model(paths.MODEL)
    tokens = Tokens(paths.TOKENS, tokenizer_from_dict(metadata["tokenizer"]))
    layout = metadata.get("train", {}).get("layout", "packed")
    bits_per_char = partial(_bits_per_char, tokens, layout)
    file, report = paths.ONNX_MODEL.with_suffix(f".{name}.onnx"), paths.REPORTS / f"{name}.json"
    with Run() as run:
        exported = OnnxBackend(paths.ONNX_MODEL, threads)
        data, quality = export_quantized(
            *(model, metadata, name, exported, bits_per_char),
            *(config.max_quality_loss, threads),
        )
        atomic_write(file, data)
        atomic_write(report, json.dumps({name: quality}, indent=1) + "\n")
        run.report("quantize", config, [report])
    loss = 100 * quality["quality_loss"]
    log.info("%s: %.1f MB, %.2f %% more bits per character", file, len(data) / 1e6, loss)


def _bits_per_char(tokens: Tokens, layout: str, backend: OnnxBackend) -> float:
    split = tokens.val_split
    batches = Batches(tokens.ids[split], layout, batch_size=1, max_seq_len=backend.max_seq_len)
    predictions = predict(partial(logits_of, backend), batches)
    return summarize(predictions, tokens.info[split])["bits_per_char"]


if __name__ == "__main__":
    run_stage(main)
