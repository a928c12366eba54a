"""Stage 3: train the model; go on where an interrupted run of the same training stopped."""

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from minigpt.common.config import ModelConfig, Params, load_params
from minigpt.common.errors import UserError
from minigpt.data.batches import Batches
from minigpt.data.ngram_table import build_draft
from minigpt.data.token_files import Tokens
from minigpt.model.checkpoint import load_model, save
from minigpt.model.loss import bits_per
from minigpt.model.model import MiniGPT
from minigpt.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_dict
from minigpt.training import distributed
from minigpt.training.distributed import Group
from minigpt.training.resume import ResumeStore
from minigpt.training.setup import adapt_vocabulary
from minigpt.training.train import Interrupted, Progress, Row, Trainer
from pipeline.common import paths
from pipeline.common.progress import TrainingProgress
from pipeline.common.resume import resume_store
from pipeline.common.stage import run_stage
from pipeline.tracking import tracking

log = logging.getLogger(__name__)


def main() -> None:
    params = load_params()
    if params.train.processes > 1 and not distributed.launched():
        distributed.launch("pipeline.train", params.train.processes)
        return
    with distributed.joined() as group:
        if group.rank > 0:
            logging.disable()  # the first process says it all
        _main(params, group)


def _main(params: Params, group: Group) -> None:
    tokenizer = load_tokenizer(paths.VOCAB)
    tokens = Tokens(paths.TOKENS, tokenizer)
    device = _device(params.train.device)
    with resume_store(params, tokens, device, group) as states:
        trainer = _trainer(params, tokenizer, tokens, device, states, group)
        signals = _catch_signals()
        if group.rank == 0:
            _train(trainer, params, tokenizer, tokens, states.folder, signals)
        else:
            with contextlib.suppress(Interrupted):
                _run(trainer, signals)


def _device(name: str) -> torch.device:
    """The accelerator of this machine, if it has one and `name` does not say otherwise."""
    present = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if name not in ("auto", "cpu", present.type):
        raise UserError(f"train.device: {name} is not available here; use auto or cpu")
    if name == "cpu" or present.type == "cpu":
        return torch.device("cpu")
    # of several accelerators each process on this machine has one
    device = torch.device(present.type, int(os.environ.get("LOCAL_RANK", 0)))
    if device.index >= torch.accelerator.device_count():
        raise UserError(
            f"train.processes: more than this machine's {torch.accelerator.device_count()} {present.type}"
        )
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # without it cuBLAS is not deterministic
    torch.accelerator.set_device_index(device.index)
    return device


def _trainer(
    params: Params,
    tokenizer: Tokenizer,
    tokens: Tokens,
    device: torch.device,
    states: ResumeStore,
    group: Group,
) -> Trainer:
    torch.manual_seed(params.train.seed)
    torch.use_deterministic_algorithms(True)
    model = MiniGPT(tokenizer.vocab_size, params.model)
    if params.train.init_from is not None:
        _start_from(Path(params.train.init_from), model, params.model, tokenizer)
    layout = (params.train.layout, params.train.batch_size, params.model.max_seq_len)
    train_batches = Batches(tokens.ids["train"], *layout, seed=params.train.seed)
    val_batches = Batches(tokens.ids[tokens.val_split], *layout)
    return Trainer(model.to(device), train_batches, val_batches, params.train, states, group)


def _start_from(path: Path, model: MiniGPT, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Fine-tuning: take the weights of the model at `path`."""
    try:
        trained, metadata = load_model(path)
        for key, value in config.model_dump(exclude={"dropout", "max_seq_len"}).items():
            if (its := metadata["config"].get(key)) != value:
                raise UserError(f"its {key} is {its}, but model.{key} is {value}; make them equal")
        old = tokenizer_from_dict(metadata["tokenizer"])
        model.load_state_dict(adapt_vocabulary(trained.state_dict(), old, tokenizer))
    except UserError as error:
        raise UserError(
            f"train.init_from: {path}: {str(error).removeprefix(f'{path}: ')}"
        ) from None


def _train(
    trainer: Trainer,
    params: Params,
    tokenizer: Tokenizer,
    tokens: Tokens,
    folder: Path,
    signals: list[int],
) -> None:
    """Train, and write model and reports; a signal on the way ends the process, its state saved."""
    if trainer.progress.step:
        log.info("going on at step %d of an interrupted training", trainer.progress.step)
    log.info(
        "training %s parameters on %s", f"{trainer.model.num_parameters:,}", trainer.device.type
    )
    characters = tokens.info[tokens.val_split].characters
    held_out = tokens.val_split == "val"
    with (
        tracking.training_run(trainer, params, tokens, folder) as run,
        TrainingProgress(trainer.total_steps, trainer.progress) as progress,
    ):

        def report(row: Row) -> None:
            if "val/loss" in row:
                row["val/bits_per_char"] = bits_per(
                    characters, row["val/loss"], trainer.val_batches.num_targets
                )
            progress(row)
            run.log(row)
            if "val/loss" in row:
                run.sample(trainer.model, tokenizer, row)

        try:
            _run(trainer, signals, report)
        except Interrupted:
            log.warning("stopped at step %d; `dvc repro` goes on from here", trainer.progress.step)
            # not 0, or DVC would take the outs for finished; another process of the group may have had the signal
            sys.exit(128 + (signals or [signal.SIGTERM])[0])
        training = _write_reports(trainer.progress, held_out)
        save(
            paths.MODEL,
            trainer.model.state_dict(),
            _metadata(params, tokenizer, tokens, trainer.model, training),
        )
        run.finish(paths.MODEL, held_out)


def _run(
    trainer: Trainer, signals: list[int], report: Callable[[Row], None] = lambda row: None
) -> None:
    try:
        trainer.run(report, should_stop=lambda: bool(signals))
    except torch.OutOfMemoryError:
        raise UserError(
            "train.batch_size: memory is full; lower it, or raise train.accumulation_steps"
        ) from None
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"train.compile: PyTorch cannot compile here ({reason}); set it to false"
        ) from None


def _catch_signals() -> list[int]:
    """SIGINT and SIGTERM are noted in this list; the training loop looks into it after each step."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, frame: received.append(signum))
    return received


def _write_reports(progress: Progress, held_out: bool) -> dict[str, Any]:
    """Write the curves and the summary; returns the summary."""
    paths.REPORTS.mkdir(exist_ok=True)
    training = pd.DataFrame([row for row in progress.history if "train/loss" in row])
    validation = pd.DataFrame([row for row in progress.history if "val/loss" in row])
    training.to_csv(paths.REPORTS / "training.csv", index=False)
    validation.to_csv(paths.REPORTS / "validation.csv", index=False)
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
    paths.TRAINING.write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _metadata(
    params: Params, tokenizer: Tokenizer, tokens: Tokens, model: MiniGPT, training: dict[str, Any]
) -> dict[str, Any]:
    """What the model file says of itself: only what the inputs determine, no time, speed or path."""
    return {
        "format": 1,
        "config": {"vocab_size": tokenizer.vocab_size, **params.model.model_dump()},
        "parameters": model.num_parameters,
        "tokenizer": tokenizer.to_dict(),
        "draft": build_draft(tokens.ids["train"], tokenizer.vocab_size).to_text(),
        "train": params.train.model_dump(),
        "training": training,
        "lineage": {"data_sha256": tokens.sha256(), "code_sha256": paths.code_sha256("train")},
    }


if __name__ == "__main__":
    run_stage(main)
