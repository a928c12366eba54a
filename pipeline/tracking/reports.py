"""Content of a record: numbers and reports of the stages, figures and the model card."""

import io
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from minigpt.common.files import file_digest
from minigpt.model.checkpoint import load_model
from minigpt.tokenizer import tokenizer_from_dict
from pipeline.common import paths
from pipeline.tracking import store
from pipeline.tracking.model_card import model_card
from pipeline.tracking.params import READER_PREFIXES, as_text, numbers
from pipeline.tracking.record import Record

log = logging.getLogger(__name__)
CURVES = {
    "train/loss": paths.REPORTS / "training.csv",
    "val/loss": paths.REPORTS / "validation.csv",
}
PREFIXES = {"evaluate": "evaluation/", "export": "export/"}  # of the metrics of a stage
CARRIED_TAGS = (*READER_PREFIXES, "validation_tokens", "onnx_sha256")
BASELINE = "evaluation/baseline_loss/"
SAMPLES = "samples.json"


def add_identity(record: Record, model: Path, held_out: bool) -> None:
    """Tag the record with the model that the run made."""
    digests = {f"model_{name}": file_digest(model, name) for name in ("md5", "sha256")}
    record.update("tags", {**digests, "held_out": str(held_out).lower()})


def add_sample(record: Record, step: int, text: str) -> None:
    """Add a generated text to the table of samples, which MLflow shows."""
    samples = json.loads(record.read_artifact(SAMPLES) or '{"data": []}')["data"]
    rows = sorted({**dict(samples), step: text}.items())
    record.write_artifact(SAMPLES, json.dumps({"columns": ["step", "text"], "data": rows}))
    shown = json.dumps([{"path": SAMPLES, "type": "table"}])
    record.update("tags", {"mlflow.loggedArtifacts": shown})


def add_stage(
    record: Record,
    stage: str,
    params: Mapping[str, Any],
    values: Mapping[str, Any],
    reports: Mapping[Path, str],
) -> None:
    """Add the numbers and the reports of evaluate or export, and the flat `params` that it used."""
    # MLflow cannot change the value of a parameter, so those of these stages are tags
    used = {name: value for name, value in params.items() if name.startswith(f"{stage}.")}
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    record.update("tags", {**as_text(used), **texts})
    found = numbers(values)
    record.log_metrics({f"{PREFIXES[stage]}{name}": found[name] for name in found})
    add_reports(record, reports)
    if paths.MISTAKES in reports:
        from pipeline.tracking import figures

        table = pd.read_csv(io.StringIO(reports[paths.MISTAKES]))
        _add_figure(record, "mistakes", lambda: figures.mistakes(table))
    if stage == "evaluate":
        add_curves(record)  # once more, with the baselines


def add_reports(record: Record, reports: Mapping[Path, str]) -> None:
    for file, text in reports.items():
        record.write_artifact(f"reports/{file.name}", text)


def add_curves(record: Record) -> None:
    """Draw the losses and the learning rate."""
    from pipeline.tracking import figures

    rows = record.metrics()[0]
    curves = {
        name: pd.DataFrame([{"step": row["step"], name: row[name]} for row in rows if name in row])
        for name in (*CURVES, "learning_rate")
        if any(name in row for row in rows)
    }
    if "learning_rate" in curves:
        schedule = curves.pop("learning_rate")
        _add_figure(record, "learning_rate", lambda: figures.learning_rate(schedule))
    latest = record.latest_metrics()
    baselines = {
        name.removeprefix(BASELINE): latest[name] for name in latest if name.startswith(BASELINE)
    }
    _add_figure(record, "loss", lambda: figures.loss(curves, baselines))


def add_model_figures(record: Record, path: Path) -> None:
    from pipeline.tracking import figures

    model, metadata = load_model(path)
    tokenizer = tokenizer_from_dict(metadata["tokenizer"])
    _add_figure(record, "attention", lambda: figures.attention(model, tokenizer))
    if (encoding := model.positional_encoding) is not None:
        _add_figure(record, "positional_encoding", lambda: figures.positional_encoding(encoding))


def _add_figure(record: Record, name: str, draw: Callable[[], Any]) -> None:
    """Draw a figure; a failure costs a warning and nothing else."""
    file = record.artifacts / "figures" / f"{name}.png"
    file.parent.mkdir(exist_ok=True)
    try:
        draw().savefig(file)
    except Exception as error:
        log.warning("%s: not drawn (%s)", file.name, store.reason(error))


def add_card(record: Record) -> str:
    """Describe the run by a model card; return the card."""
    tags, dataset = record.tags, record.read("dataset")
    names = [f"{Path(dataset['path']).name} (digest {dataset['digest']})"] if dataset else []
    used = {name: text for name, text in tags.items() if name.startswith(READER_PREFIXES)}
    card = model_card(
        {**record.read("params"), **used},
        record.latest_metrics(),
        tags,
        names,
        record.read_artifact("reports/samples.md"),
    )
    record.write_artifact("model_card.md", card)
    record.update("tags", {store.DESCRIPTION: card})
    return card


def carry_over(record: Record, earlier: Record) -> None:
    """Copy the evaluation and the export of an `earlier` run that made an equal model."""
    prefixes = tuple(PREFIXES.values())
    latest = earlier.latest_metrics()
    record.log_metrics({name: latest[name] for name in latest if name.startswith(prefixes)})
    kept = {name: text for name, text in earlier.tags.items() if name.startswith(CARRIED_TAGS)}
    record.update("tags", {**kept, "evaluated_in_record": earlier.id})
    for file in earlier.artifacts.glob("*/*"):
        copy = record.artifacts / file.relative_to(earlier.artifacts)
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(file, copy)
    if earlier.onnx_model.exists():
        record.add_onnx_model(earlier.onnx_model)
