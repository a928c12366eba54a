"""Stage 5: export the model to ONNX, checked against the checkpoint."""

import json
import logging
from functools import partial

from minigpt.common.config import load_params
from minigpt.common.files import atomic_folder, atomic_write
from minigpt.data.batches import Batches
from minigpt.data.token_files import Tokens
from minigpt.evaluation.evaluate import predict, summarize
from minigpt.export.checks import logits_of, opened
from minigpt.export.export import export, export_quantized
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.model.checkpoint import load_model
from minigpt.tokenizer import tokenizer_from_dict
from pipeline.common import paths
from pipeline.common.stage import run_stage
from pipeline.tracking.run import Run

log = logging.getLogger(__name__)


def main() -> None:
    config = load_params().export
    model, metadata = load_model(paths.MODEL)
    with Run() as run:
        data, result = export(model, metadata, config.tolerance)
        # the folder is an out, and DVC rejects empty folders
        int8_file, int8_content = "none", b"export.quantize is null\n"
        if config.quantize is not None:
            tokens = Tokens(paths.TOKENS, tokenizer_from_dict(metadata["tokenizer"]))
            bits = partial(_bits_per_char, tokens, metadata["train"]["layout"])
            with opened(data) as exported:
                expected = bits(exported)
            int8_file = paths.INT8_MODEL.name
            int8_content, result["int8"] = export_quantized(
                model, metadata, config.quantize, bits, expected, config.max_quality_loss
            )
        with atomic_folder(paths.INT8_MODEL.parent) as folder:
            (folder / int8_file).write_bytes(int8_content)
        atomic_write(paths.ONNX_MODEL, data)
        atomic_write(paths.EXPORT, json.dumps(result, indent=1) + "\n")
        run.report("export", config, [paths.EXPORT, paths.ONNX_MODEL])
    log.info("%s: %.1f MB, equal to the checkpoint", paths.ONNX_MODEL, len(data) / 1e6)


def _bits_per_char(tokens: Tokens, layout: str, backend: OnnxBackend) -> float:
    split = tokens.val_split
    batches = Batches(tokens.ids[split], layout, batch_size=1, max_seq_len=backend.max_seq_len)
    predictions = predict(partial(logits_of, backend), batches)
    return summarize(predictions, tokens.info[split])["bits_per_char"]


if __name__ == "__main__":
    run_stage(main)
