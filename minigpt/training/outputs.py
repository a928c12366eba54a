"""Outputs of a training: the reports, and the metadata of the model file."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from minigpt.common.config import Params
from minigpt.common.files import atomic_write
from minigpt.common.format_version import FORMAT_VERSION
from minigpt.data.ngram_table import MAX_BYTES
from minigpt.data.token_files import Tokens
from minigpt.model.loss import bits_per
from minigpt.model.model import MiniGPT
from minigpt.tokenizer import Tokenizer
from minigpt.training.ngram import build_ngram_table
from minigpt.training.train import Metrics, Progress, Trainer

log = logging.getLogger(__name__)
# Of the n-gram table. With fewer, as for subwords, drafts do not pay: on the tales, 384 contexts of
# a vocabulary of 512 predict 17 % of the tokens, and 192 contexts of one of 1,024 predict 13 %.
MIN_CONTEXTS = 256
OVERFITTING = 0.75  # share of the steps: an earlier lowest validation loss is reported


def add_bits_per_char(metrics: Metrics, trainer: Trainer, tokens: Tokens) -> None:
    """Add "val/bits_per_char" to the metrics of a validation."""
    if "val/loss" in metrics:
        characters = tokens.info[tokens.val_split].characters
        predictions = trainer.val_batches.num_targets
        metrics["val/bits_per_char"] = bits_per(characters, metrics["val/loss"], predictions)


def write_reports(folder: Path, progress: Progress, held_out: bool) -> dict[str, Any]:
    """Write the curves of a training into `folder`; return a summary."""
    training, validation = (
        pd.DataFrame([metrics for metrics in progress.history if name in metrics])
        for name in ("train/loss", "val/loss")
    )
    best = validation.set_index("step").loc[progress.best_step]
    if held_out and progress.best_step <= OVERFITTING * progress.step:
        log.warning(
            "the model overfits: its validation loss was lowest at step %d of %d (%.4f; at the "
            "end %.4f), whose weights are kept; train on more text, lower train.max_steps, or "
            "raise model.dropout",
            *(progress.best_step, progress.step, best["val/loss"], validation["val/loss"].iloc[-1]),
        )
    atomic_write(folder / "training.csv", training.to_csv(index=False))
    atomic_write(folder / "validation.csv", validation.to_csv(index=False))
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "best_step": progress.best_step,
        "train/loss": float(training["train/loss"].iloc[-1]),
        "val/loss": float(best["val/loss"]),
        "val/bits_per_char": float(best["val/bits_per_char"]),
        "held_out": held_out,
    }


def _ngram_table(tokens: Tokens, vocab_size: int) -> dict[str, str]:
    """Return the n-gram table, if it has enough contexts to predict well."""
    if MAX_BYTES // vocab_size < MIN_CONTEXTS:
        return {}
    return {"ngram_table": build_ngram_table(tokens.ids["train"], vocab_size).to_text()}


def model_metadata(
    params: Params,
    tokenizer: Tokenizer,
    tokens: Tokens,
    model: MiniGPT,
    training: dict[str, Any],
) -> dict[str, Any]:
    """Return the metadata of the model file: only what the inputs determine, no time or path.

    `training` is the summary that `write_reports` returned.
    """
    return {
        "format_version": FORMAT_VERSION,
        "config": {"vocab_size": tokenizer.vocab_size, **params.model.model_dump()},
        "parameters": model.num_parameters,
        "tokenizer": tokenizer.to_dict(),
        **_ngram_table(tokens, tokenizer.vocab_size),
        "train": params.train.model_dump(),
        "training": training,
        "lineage": {"data_sha256": tokens.sha256()},
    }
