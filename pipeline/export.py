"""Stage 5: the model as one ONNX file, proved equal to the checkpoint before it is kept."""

import json
import logging
import tempfile
from pathlib import Path

from minigpt.backends.onnx import OnnxBackend
from minigpt.backends.torch import TorchBackend
from minigpt.checkpoint import load_model
from minigpt.config import load_params
from minigpt.dataset import Tokens
from minigpt.draft import build_draft
from minigpt.export import check_parity, max_logit_difference
from minigpt.files import atomic_write
from minigpt.graph import to_onnx
from minigpt.tokenizer import tokenizer_from_dict
from pipeline import project, run_stage, tracking

log = logging.getLogger(__name__)


def main() -> None:
    config = load_params().export
    model, metadata = load_model(project.MODEL)
    tokenizer = tokenizer_from_dict(metadata["tokenizer"])
    tokens = Tokens(project.TOKENS, tokenizer)
    with tracking.model_run(project.MODEL) as run:
        data = to_onnx(model, metadata, build_draft(tokens.ids["train"], tokenizer.vocab_size))
        difference = _difference(data, TorchBackend(model, tokenizer))
        check_parity(difference, config.tolerance)
        atomic_write(project.ONNX_MODEL, data)
        project.REPORTS.mkdir(exist_ok=True)
        result = {"max_logit_difference": difference, "bytes": len(data)}
        project.EXPORT.write_text(json.dumps(result, indent=1) + "\n")
        run.report("export", result, [project.EXPORT])
        run.onnx_model(project.ONNX_MODEL)
    log.info("%s: %.1f MB, logits within %.1g of PyTorch's", project.ONNX_MODEL, len(data) / 1e6, difference)


def _difference(data: bytes, torch_backend: TorchBackend) -> float:
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "candidate.onnx"
        candidate.write_bytes(data)
        return max_logit_difference(torch_backend, OnnxBackend(candidate))


if __name__ == "__main__":
    run_stage(main)
