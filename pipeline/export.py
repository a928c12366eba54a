"""Stage 5: the model as one ONNX file, proved equal to the checkpoint before it is kept."""

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from minigpt.common.config import ExportConfig, load_params
from minigpt.common.files import atomic_write
from minigpt.data.batches import Batches
from minigpt.data.token_files import Tokens
from minigpt.evaluation.evaluate import predict, summarize
from minigpt.export.checks import check_parity, check_quality, logits_of, max_logit_difference
from minigpt.export.onnx_graph import to_onnx
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.torch_backend import TorchBackend
from minigpt.model.checkpoint import load_model
from minigpt.model.model import MiniGPT
from minigpt.tokenizer import tokenizer_from_dict
from pipeline.common import paths
from pipeline.common.stage import run_stage
from pipeline.tracking import tracking

log = logging.getLogger(__name__)


def main() -> None:
    config = load_params().export
    model, metadata = load_model(paths.MODEL)
    tokenizer = tokenizer_from_dict(metadata["tokenizer"])
    tokens = Tokens(paths.TOKENS, tokenizer)
    with tracking.model_run(paths.MODEL) as run:
        data = to_onnx(model, metadata)
        with _opened(data) as backend:
            difference = max_logit_difference(TorchBackend(model, tokenizer), backend)
            check_parity(difference, config.tolerance)
            result: dict[str, Any] = {
                "max_logit_difference": difference,
                "tolerance": config.tolerance,
                "bytes": len(data),
            }
            shutil.rmtree(paths.INT8_MODEL.parent, ignore_errors=True)
            paths.INT8_MODEL.parent.mkdir(parents=True)
            if config.quantize is None:  # the folder is an out, and DVC does not like empty ones
                (paths.INT8_MODEL.parent / "none").write_text("export.quantize is null\n")
            else:
                result["int8"] = _quantize(config, model, metadata, backend, tokens)
        atomic_write(paths.ONNX_MODEL, data)
        paths.REPORTS.mkdir(exist_ok=True)
        paths.EXPORT.write_text(json.dumps(result, indent=1) + "\n")
        run.report("export", config, result, [paths.EXPORT])
        run.onnx_model(paths.ONNX_MODEL)
    log.info(
        "%s: %.1f MB, logits within %.1g of PyTorch's",
        paths.ONNX_MODEL,
        len(data) / 1e6,
        difference,
    )


def _quantize(
    config: ExportConfig,
    model: MiniGPT,
    metadata: dict[str, Any],
    full: OnnxBackend,
    tokens: Tokens,
) -> dict[str, Any]:
    """Write the quantized model if it is nearly as good as the `full` one; returns how good."""
    split = tokens.val_split
    batches = Batches(
        tokens.ids[split], metadata["train"]["layout"], batch_size=1, max_seq_len=model.max_seq_len
    )

    def bits(backend: OnnxBackend) -> float:
        return summarize(predict(partial(logits_of, backend), batches), tokens.info[split])[
            "bits_per_char"
        ]

    with _opened(to_onnx(model, metadata, config.quantize)) as backend:
        found, expected = bits(backend), bits(full)
    check_quality(found, expected, config.max_quality_loss)
    quality = {"bits_per_char": found, "quality_loss": found / expected - 1}
    data = to_onnx(
        model, {**metadata, "quantization": {"type": config.quantize, **quality}}, config.quantize
    )
    atomic_write(paths.INT8_MODEL, data)
    size = len(data) / 1e6
    log.info(
        "%s: %.1f MB, %.4f bits per character in place of %.4f",
        paths.INT8_MODEL,
        size,
        found,
        expected,
    )
    return {**quality, "bytes": len(data)}


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[OnnxBackend]:
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "candidate.onnx"
        candidate.write_bytes(data)
        yield OnnxBackend(candidate)


if __name__ == "__main__":
    run_stage(main)
