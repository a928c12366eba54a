"""The end of `make repro`: figures, a text from the exported model, and what to try next."""

import json
import math

import pandas as pd

from minigpt.common.errors import UserError
from minigpt.generation.engine import generate
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling
from pipeline.common import paths
from pipeline.common.stage import run_stage

TEMPERATURE = 0.6  # reads best: fewer misspelled words than at 0.8, and few repetitions
NEXT = """\
try next:
  source .venv/bin/activate
  minigpt-cli generate --prompt "Once upon a time"
  dvc exp run --temp --name slow -S train.learning_rate=1e-3
  dvc metrics diff baseline slow
  make ui"""


def main() -> None:
    try:
        evaluation = json.loads(paths.EVALUATION.read_text())
        details = json.loads(paths.EVALUATION_DETAILS.read_text())
        baselines = pd.read_csv(paths.BASELINES, index_col="model")["loss"]
        losses = {"this model": evaluation["loss"], **baselines.to_dict()}
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: not found; run `dvc repro`") from None
    except (ValueError, KeyError):
        raise UserError(
            f"{paths.REPORTS}: damaged or of an older version; run `dvc repro`"
        ) from None
    split = "validation" if details["held_out"] else "training (nothing is held out of this corpus)"
    table = "\n".join(
        f"  {name:12} {loss:.4f}"
        for name, loss in sorted(losses.items(), key=lambda item: -item[1])
    )
    backend, sampling = OnnxBackend(paths.ONNX_MODEL), Sampling(temperature=TEMPERATURE)
    text = "".join(generate(backend, "", 300, sampling))
    print(f"""
{split} loss in nats per token, from a uniform guess to this model:
{table}
perplexity {math.exp(evaluation["loss"]):.3f}, {evaluation["bits_per_char"]:.3f} bits per character

{paths.ONNX_MODEL} generates, at temperature {TEMPERATURE}:

{text}

{NEXT}""")


if __name__ == "__main__":
    run_stage(main)
