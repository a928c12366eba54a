"""Stage 3: train the model; go on where an interrupted run of the same training stopped."""

import contextlib
import hashlib
import json
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout

from minigpt.checkpoint import ResumeStore, save
from minigpt.config import Params, load_params
from minigpt.dataset import Batches, Tokens
from minigpt.loss import bits_per
from minigpt.model import MiniGPT
from minigpt.tokenizer import Tokenizer, load_tokenizer
from minigpt.train import Interrupted, Progress, Row, Trainer
from pipeline import project, run_stage, tracking
from pipeline.progress import TrainingProgress

log = logging.getLogger(__name__)


def main() -> None:
    params = load_params()
    tokenizer = load_tokenizer(project.VOCAB)
    tokens = Tokens(project.TOKENS, tokenizer)
    folder = project.root() / ".minigpt" / "checkpoints" / _fingerprint(params, tokens)
    with _alone(folder):
        states = ResumeStore(folder)
        trainer = _trainer(params, tokenizer, tokens, states)
        if trainer.progress.step:
            log.info("going on at step %d of an interrupted training", trainer.progress.step)
        _train(trainer, params, tokenizer, tokens, folder)
        states.clear()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold off another process that trains the very same: the two would write the same states."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.warning("another process trains this very model; waiting for it (%s)", lock.lock_file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _trainer(params: Params, tokenizer: Tokenizer, tokens: Tokens, states: ResumeStore) -> Trainer:
    torch.manual_seed(params.train.seed)
    torch.use_deterministic_algorithms(True)
    model = MiniGPT(tokenizer.vocab_size, **params.model.model_dump())
    layout = (params.train.layout, params.train.batch_size, params.model.max_seq_len)
    train_batches = Batches(tokens.ids["train"], *layout, seed=params.train.seed)
    val_batches = Batches(tokens.ids[tokens.val_split], *layout)
    return Trainer(model, train_batches, val_batches, params.train, states)


def _train(trainer: Trainer, params: Params, tokenizer: Tokenizer, tokens: Tokens, folder: Path) -> None:
    """Train, and write model and reports; a signal on the way ends the process, its state saved."""
    signals = _catch_signals()
    characters = tokens.info[tokens.val_split].characters
    held_out = tokens.val_split == "val"
    with (
        tracking.training_run(trainer, params, tokens, folder) as run,
        TrainingProgress(params.train.max_steps, trainer.progress.step) as progress,
    ):

        def report(row: Row) -> None:
            if "val/loss" in row:
                row["val/bits_per_char"] = bits_per(characters, row["val/loss"], trainer.val_batches.num_targets)
            progress(row)
            run.log(row)
            if "val/loss" in row:
                run.sample(trainer.model, tokenizer, row)

        try:
            trainer.run(report, should_stop=lambda: bool(signals))
        except Interrupted:
            log.warning("stopped at step %d; `dvc repro` goes on from here", trainer.progress.step)
            sys.exit(128 + signals[0])  # not 0, or DVC would take the outs for finished
        training = _write_reports(trainer.progress, held_out)
        save(project.MODEL, trainer.model.state_dict(), _metadata(params, tokenizer, tokens, trainer.model, training))
        run.finish(project.MODEL, held_out)


def _fingerprint(params: Params, tokens: Tokens) -> str:
    """Of this very training: other parameters, data, code, libraries or processor, and it is another one."""
    facts = [
        params.model.model_dump(),
        params.train.model_dump(),
        tokens.sha256(),
        project.code_sha256("train"),
        (torch.__version__, np.__version__),
        (torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _catch_signals() -> list[int]:
    """SIGINT and SIGTERM are noted in this list; the training loop looks into it after each step."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, frame: received.append(signum))
    return received


def _write_reports(progress: Progress, held_out: bool) -> dict[str, Any]:
    """Write the curves and the summary; returns the summary."""
    project.REPORTS.mkdir(exist_ok=True)
    training = pd.DataFrame([row for row in progress.history if "train/loss" in row])
    validation = pd.DataFrame([row for row in progress.history if "val/loss" in row])
    training.to_csv(project.REPORTS / "training.csv", index=False)
    validation.to_csv(project.REPORTS / "validation.csv", index=False)
    best = validation.set_index("step").loc[progress.best_step]
    summary = {
        "steps": progress.step,
        "tokens": progress.tokens,
        "best_step": progress.best_step,
        "train/loss": float(training["train/loss"].iloc[-1]),
        "val/loss": float(best["val/loss"]),
        "val/bits_per_char": float(best["val/bits_per_char"]),
        "held_out": held_out,
    }
    project.TRAINING.write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _metadata(
    params: Params, tokenizer: Tokenizer, tokens: Tokens, model: MiniGPT, training: dict[str, Any]
) -> dict[str, Any]:
    """What the model file says of itself: only what the inputs determine, no time, speed or path."""
    return {
        "format": 1,
        "config": {"vocab_size": tokenizer.vocab_size, **params.model.model_dump()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokenizer": tokenizer.to_dict(),
        "train": params.train.model_dump(),
        "training": training,
        "lineage": {"data_sha256": tokens.sha256(), "code_sha256": project.code_sha256("train")},
    }


if __name__ == "__main__":
    run_stage(main)
