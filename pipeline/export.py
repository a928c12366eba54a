"""Stage 5: export the model to ONNX, checked against the checkpoint."""

import json
import logging
import shutil
from functools import partial

from minigpt.common.config import load_params
from minigpt.common.files import atomic_write
from minigpt.data.batches import Batches
from minigpt.data.token_files import Tokens
from minigpt.evaluation.evaluate import predict, summarize
from minigpt.export.checks import logits_of, opened
from minigpt.export.export import export, export_quantized
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.model.checkpoint import load_model
from pipeline.common import paths
from pipeline.common.stage import run_stage
from pipeline.tracking.run import Run

log = logging.getLogger(__name__)


def main() -> None:
    config = load_params().export
    model, metadata = load_model(paths.MODEL)
    int8_folder = paths.INT8_MODEL.parent
    with Run() as run:
        data, result = export(model, metadata, config.tolerance)
        shutil.rmtree(int8_folder, ignore_errors=True)
        int8_folder.mkdir(parents=True)
        if config.quantize is None:  # the folder is an out, and DVC rejects empty folders
            (int8_folder / "none").write_text("export.quantize is null\n")
        else:
            bits = partial(_bits_per_char, metadata["train"]["layout"])
            with opened(data) as exported:
                expected = bits(exported)
            quantized, result["int8"] = export_quantized(
                model, metadata, config.quantize, bits, expected, config.max_quality_loss
            )
            atomic_write(paths.INT8_MODEL, quantized)
        atomic_write(paths.ONNX_MODEL, data)
        paths.REPORTS.mkdir(exist_ok=True)
        paths.EXPORT.write_text(json.dumps(result, indent=1) + "\n")
        run.report("export", config, [paths.EXPORT, paths.ONNX_MODEL])
    log.info("%s: %.1f MB, equal to the checkpoint", paths.ONNX_MODEL, len(data) / 1e6)


def _bits_per_char(layout: str, backend: OnnxBackend) -> float:
    tokens = Tokens(paths.TOKENS, backend.tokenizer)
    split = tokens.val_split
    batches = Batches(tokens.ids[split], layout, batch_size=1, max_seq_len=backend.max_seq_len)
    predictions = predict(partial(logits_of, backend), batches)
    return summarize(predictions, tokens.info[split])["bits_per_char"]


if __name__ == "__main__":
    run_stage(main)
