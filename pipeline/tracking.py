"""What the stages tell MLflow, and when. It observes, and cannot change an out.

One trained model is one run. Its id is random, so no stage passes it on: train tags its run with the
MD5 of the model file it wrote (DVC's name for it), and evaluate and export find the run by the file they read.

Tracking never stops the work, nor holds it up: a thread talks to the store, and in training a process of its own.
Where the store is absent, locked, full or slow, one warning says so, and what could not be told is tried again. What a
server did not take by the end goes into the local store, and `python -m pipeline.tracking` sends it later. What no
store took is in Git and DVC all the same: that command makes from them the runs that are missing.
"""

import contextlib
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from minigpt.config import Params
from minigpt.dataset import Tokens
from minigpt.errors import UserError
from minigpt.model import MiniGPT
from minigpt.tokenizer import Tokenizer
from minigpt.train import Row, Trainer
from pipeline import content, costs, project, run_stage, store
from pipeline.run import Run

log = logging.getLogger(__name__)
SAMPLE_TOKENS = 80  # of the text that the model writes at each validation, from nothing and with seed 0


class TrainingRun:
    """What a training has to tell, told to the process that tells MLflow: `pipeline/teller.py`."""

    def __init__(self, trainer: Trainer) -> None:
        self._teller = subprocess.Popen([sys.executable, "-m", "pipeline.teller"], stdin=subprocess.PIPE, text=True)
        self._flops_per_token = costs.flops_per_token(trainer.model)
        self._costs = costs.Costs()
        self._mark_time(trainer.progress.tokens)

    def begin(self, trainer: Trainer, params: Params, tokens: Tokens, note: Path) -> None:
        """Start the run, or go on with the one whose id `note` holds."""
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        machine = {"threads": str(torch.get_num_threads()), "gpu": gpu}
        digest, history = tokens.sha256()[:16], trainer.progress.history
        self._tell("begin", str(note), params.model_dump(), machine, trainer.model.num_parameters, digest, history)

    def _tell(self, method: str, *arguments: Any) -> None:
        assert self._teller.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `end` says that it is gone
            self._teller.stdin.write(json.dumps([method, *arguments]) + "\n")
            self._teller.stdin.flush()

    def log(self, row: Row) -> None:
        """Take the metrics of one step."""
        row = {**row, "flops": row["tokens"] * self._flops_per_token}
        if "train/loss" in row:
            speed = (row["tokens"] - self._mark_tokens) / (time.monotonic() - self._mark)
            row |= {"tokens_per_second": speed, **self._costs()}
        self._tell("log", row)
        self._mark_time(row["tokens"])

    def _mark_time(self, tokens: float) -> None:
        """Training goes on from here: validation and samples are not its time."""
        self._mark, self._mark_tokens = time.monotonic(), tokens

    def sample(self, model: MiniGPT, tokenizer: Tokenizer, row: Row) -> None:
        """Take a text that the model writes at this step; the prompt and the seed are always the same."""
        from minigpt.backends.torch import TorchBackend
        from minigpt.inference import generate

        model.eval()
        text = "".join(generate(TorchBackend(model, tokenizer), "", SAMPLE_TOKENS))
        model.train()
        self._tell("sample", int(row["step"]), text)
        self._mark_time(row["tokens"])

    def finish(self, held_out: bool) -> None:
        """The model and its reports are written."""
        self._tell("finish", held_out)

    def end(self, status: str) -> None:
        """Close the run, when all is told."""
        self._tell("end", status)
        with contextlib.suppress(BrokenPipeError):
            self._teller.communicate()
        if self._teller.returncode:
            log.warning("not all was tracked; later, `python -m pipeline.tracking` sends what is missing")


@contextlib.contextmanager
def training_run(trainer: Trainer, params: Params, tokens: Tokens, state_folder: Path) -> Iterator[TrainingRun]:
    """The run of a training; one that was interrupted goes on in the run it began."""
    run = TrainingRun(trainer)
    note = state_folder / "mlflow_run_id"
    with _ended_properly(run):
        run.begin(trainer, params, tokens, note)
        yield run
    note.unlink(missing_ok=True)


@contextlib.contextmanager
def model_run(model: Path) -> Iterator[Run]:
    """The run that made `model`; where the store has none, one restored from what DVC knows."""
    run = Run()
    with _ended_properly(run):
        run.tell(lambda: _open_model_run(run, model))
        yield run


def _open_model_run(run: Run, model: Path) -> None:
    found = content.find(project.file_digest(model, "md5"))
    if found is not None:
        run.start(run_id=found.info.run_id)
    else:
        run.start(**content.restored(model))
        content.restore_model(run.id, model)


@contextlib.contextmanager
def _ended_properly(run: Run | TrainingRun) -> Iterator[None]:
    """A crash reads FAILED, a signal KILLED, and only what came to its end FINISHED."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (SystemExit, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        run.end(status)


def main() -> None:
    """Send what the store lacks: runs that wait in the local one, the present model's, all that Git knows."""
    from pipeline.sync import sync

    try:
        for line in sync():
            log.info(line)
    except UserError:
        raise
    except Exception as error:  # whatever is wrong with the store
        message = f"the tracking store does not answer ({store.reason(error)}); mend it and try again"
        raise UserError(message) from None


if __name__ == "__main__":
    run_stage(main)
