"""Content of a record that the stages make: numbers, reports, figures and the model card."""

import io
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from minigpt.common.errors import one_line
from minigpt.common.files import atomic_file, atomic_write, file_digest
from minigpt.model.checkpoint import load_model
from minigpt.tokenizer import tokenizer_from_dict
from pipeline.common import paths
from pipeline.tracking import store
from pipeline.tracking.model_card import FOLDED, model_card
from pipeline.tracking.params import as_text, flatten
from pipeline.tracking.record import Record

log = logging.getLogger(__name__)
# stages that only read the model, and the prefix of their metrics
PREFIXES = {"evaluate": "evaluation", "export": "export", "quantize": "quantize"}
BASELINE = "evaluation/baseline_loss/"
SAMPLES = "samples.json"
NUMBERS = (int, float)  # bool is a subclass of int, but no number here


def add_sample(record: Record, step: int, text: str) -> None:
    """Add a generated text to the table of samples, which MLflow shows."""
    samples = json.loads(record.read_artifact(SAMPLES) or '{"data": []}')["data"]
    rows = sorted({**dict(samples), step: text}.items())
    record.write_artifact(SAMPLES, json.dumps({"columns": ["step", "text"], "data": rows}))
    shown = json.dumps([{"path": SAMPLES, "type": "table"}])
    record.update("tags", {"mlflow.loggedArtifacts": shown})


def add_reports(record: Record, reports: Mapping[Path, str]) -> None:
    for file, text in reports.items():
        record.write_artifact(f"reports/{file.name}", text)


def add_stage(
    record: Record, stage: str, params: Mapping[str, Any], reports: Mapping[Path, str]
) -> None:
    """Add the reports of evaluate or export and the flat `params` that it used; renew the card."""
    add_reports(record, reports)
    summary = summarize(reports)
    # MLflow cannot change the value of a parameter, so those of these stages are tags
    used = {name: value for name, value in params.items() if name.startswith(f"{stage}.")}
    texts = {name: value for name, value in summary.items() if isinstance(value, str)}
    record.update("tags", {**as_text(used), **texts})
    values = flatten({PREFIXES[stage]: summary}, "/")
    record.log_metrics({name: values[name] for name in values if type(values[name]) in NUMBERS})
    if stage == "evaluate":
        _add_figures(record)
    add_card(record)


def summarize(reports: Mapping[Path, str]) -> dict[str, Any]:
    """Merge the values in the reports of a stage."""
    summary: dict[str, Any] = {}
    for file, text in reports.items():
        if file.suffix == ".json":
            summary |= json.loads(text)
    if paths.BASELINES in reports:
        table = pd.read_csv(io.StringIO(reports[paths.BASELINES]), index_col="model")
        summary["baseline_loss"] = table["loss"].to_dict()
    return summary


def _add_figures(record: Record) -> None:
    """Draw the figures; one that fails costs a warning and nothing else."""
    from pipeline.tracking import figures

    curves, latest = pd.DataFrame(record.metrics()[0]), record.latest_metrics()
    baselines = {
        name.removeprefix(BASELINE): latest[name] for name in latest if name.startswith(BASELINE)
    }
    mistakes = io.StringIO(record.read_artifact(f"reports/{paths.MISTAKES.name}"))
    drawings: dict[str, Callable[[], Any]] = {
        "loss": lambda: figures.loss(curves, baselines),
        "mistakes": lambda: figures.mistakes(pd.read_csv(mistakes)),
    }
    if "learning_rate" in curves:
        drawings["learning_rate"] = lambda: figures.learning_rate(curves)
    if is_current(record):
        model, metadata = load_model(paths.MODEL)
        tokenizer, encoding = tokenizer_from_dict(metadata["tokenizer"]), model.positional_encoding
        drawings["attention"] = lambda: figures.attention(model, tokenizer)
        if encoding is not None:
            drawings["positional_encoding"] = lambda: figures.positional_encoding(encoding)
    folder = record.artifacts / "figures"
    for name, draw in drawings.items():
        try:
            with atomic_file(folder / f"{name}.png") as file:
                draw().savefig(file, format="png")
        except Exception as error:
            log.warning("%s.png: not drawn (%s)", name, one_line(error))


def is_current(record: Record) -> bool:
    """Return whether the record is of the model in the working tree."""
    md5 = record.tags.get("model_md5")
    return paths.MODEL.exists() and file_digest(paths.MODEL, "md5") == md5


def add_card(record: Record) -> None:
    """Describe the run by a model card; that of the current model is also a report."""
    card = model_card(record)
    record.write_artifact("model_card.md", card)
    # below the title on MLflow's page, which cannot fold and has the rest in tables
    description = card.partition("\n")[2].partition(FOLDED)[0].lstrip()
    record.update("tags", {store.DESCRIPTION: description})
    if is_current(record):
        atomic_write(paths.MODEL_CARD, card)
