"""The end of `make repro`: figures, a text from the exported model, and what to try next."""

import json

from minigpt.common.errors import UserError
from minigpt.generation.engine import generate
from minigpt.generation.onnx_backend import OnnxBackend
from pipeline.common import paths
from pipeline.common.stage import run_stage

NEXT = """\
try next:
  source .venv/bin/activate
  minigpt-cli generate --prompt "Once upon a time"
  dvc exp run -S train.learning_rate=1e-3
  make ui"""


def main() -> None:
    try:
        evaluation = json.loads(paths.EVALUATION.read_text())
        five_gram = evaluation["baseline_loss"]["5-gram"]
    except FileNotFoundError:
        raise UserError(f"{paths.EVALUATION}: not found; run `dvc repro`") from None
    except (ValueError, KeyError):
        raise UserError(
            f"{paths.EVALUATION}: damaged or of an older version; run `dvc repro`"
        ) from None
    split = (
        "validation" if evaluation["held_out"] else "training (nothing is held out of this corpus)"
    )
    text = "".join(generate(OnnxBackend(paths.ONNX_MODEL), "", max_new_tokens=300))
    print(f"""
{split} loss  {evaluation["loss"]:.4f} nats per token (5-gram baseline {five_gram:.4f})
perplexity       {evaluation["perplexity"]:.3f}
bits per char    {evaluation["bits_per_char"]:.3f}
model            {paths.ONNX_MODEL}, which generates:

{text}

{NEXT}""")


if __name__ == "__main__":
    run_stage(main)
