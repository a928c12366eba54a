"""What a tracking run holds. Each function logs one kind of thing, or reads it back; all may run twice."""

import io
import json
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from minigpt.common.config import load_params
from minigpt.common.files import file_digest
from minigpt.data.token_files import Tokens
from minigpt.generation.sampling import Sampling
from minigpt.model.checkpoint import load, load_model
from minigpt.tokenizer import tokenizer_from_dict
from minigpt.training.train import Metrics
from pipeline.common import paths
from pipeline.tracking import lineage, store
from pipeline.tracking.history import Snapshot
from pipeline.tracking.model_card import model_card
from pipeline.tracking.store import client, mlflow

log = logging.getLogger(__name__)
CURVES = {
    "train/loss": paths.REPORTS / "training.csv",
    "val/loss": paths.REPORTS / "validation.csv",
}
PREFIXES = {"evaluate": "evaluation", "export": "export"}  # of the metrics of a stage
SAMPLES = "samples.json"
DESCRIPTION = "mlflow.note.content"  # the tag that a run's page shows as text


def find(md5: str) -> Any:
    """The latest run that made the model with this MD5, or None."""
    return store.find(f"tags.model_md5 = '{md5}'")


def identity(model: Path, held_out: bool) -> dict[str, str]:
    """The tags that say which model a run made; a run that has them is complete."""
    digests = {f"model_{name}": file_digest(model, name) for name in ("md5", "sha256")}
    return {**digests, "held_out": str(held_out).lower()}


def log_params(run_id: str, params: dict[str, Any]) -> None:
    """Log what the model is made with. What evaluate and export read may change later, as no parameter of MLflow's
    can, and so becomes tags (`log_reports`)."""
    from mlflow.entities import Param

    known = client().get_run(run_id).data.params  # of an interrupted run that goes on
    new = _texts(
        {name: value for name, value in lineage.of_model(params).items() if name not in known}
    )
    client().log_batch(run_id, params=[Param(name, text) for name, text in new.items()])


def _texts(params: dict[str, Any]) -> dict[str, str]:
    """60.0 as 60, which is how dvc.lock may know it."""
    plain = {
        name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in params.items()
    }
    return {name: str(value) for name, value in plain.items()}


def log_metrics(run_id: str, values: dict[str, float]) -> None:
    log_rows(run_id, [(time.time(), {**values, "step": 0})])


def add_row(rows: list[tuple[float, Metrics]], row: Metrics) -> None:
    """Append a row, with the time; what the last one has said of the same step is not said again.

    MLflow draws a curve by tokens only where a step has one value of each metric.
    """
    said = rows[-1][1] if rows and rows[-1][1]["step"] == row["step"] else {}
    rows.append(
        (
            time.time(),
            {name: value for name, value in row.items() if name == "step" or name not in said},
        )
    )


def log_rows(run_id: str, rows: list[tuple[float, Metrics]]) -> None:
    """Log rows of metrics, each with its time (seconds)."""
    from mlflow.entities import Metric

    metrics = [
        Metric(name, value, int(when * 1000), int(row["step"]))
        for when, row in rows
        for name, value in row.items()
        if name != "step"
    ]
    for start in range(0, len(metrics), 1000):  # the most that MLflow takes at once
        client().log_batch(run_id, metrics[start : start + 1000])


def log_tags(run_id: str, tags: dict[str, str]) -> None:
    from mlflow.entities import RunTag

    client().log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def log_dataset(run_id: str, path: str, tokens: Tokens) -> None:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    source = CodeDatasetSource({"data.path": path})
    dataset = MetaDataset(source, name=Path(path).name, digest=tokens.sha256()[:16])  # type: ignore[abstract]
    entity = dataset._to_mlflow_entity()
    inputs = [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])]
    try:
        client().log_inputs(run_id, inputs)
    except (
        mlflow().exceptions.MlflowException
    ):  # MLflow trips where another run names the same data at that moment
        client().log_inputs(run_id, inputs)


def log_samples(run_id: str, samples: dict[int, str]) -> None:
    """Log texts by step, as a table that MLflow shows."""
    client().log_dict(
        run_id, {"columns": ["step", "text"], "data": sorted(samples.items())}, SAMPLES
    )
    client().set_tag(
        run_id, "mlflow.loggedArtifacts", json.dumps([{"path": SAMPLES, "type": "table"}])
    )


def logged_samples(run_id: str) -> dict[int, str]:
    return dict(json.loads(_logged_text(run_id, SAMPLES) or '{"data": []}')["data"])


def log_reports(
    run_id: str,
    stage: str,
    params: dict[str, Any],
    values: dict[str, Any],
    reports: dict[Path, str],
) -> None:
    """Log the numbers and the files of evaluate or export, and which of the flat `params` it used."""
    log_tags(
        run_id,
        _texts({name: value for name, value in params.items() if name.startswith(f"{stage}.")}),
    )
    log_metrics(
        run_id, {f"{PREFIXES[stage]}/{name}": value for name, value in _numbers(values).items()}
    )
    log_tags(run_id, {name: value for name, value in values.items() if isinstance(value, str)})
    log_texts(run_id, reports)
    if paths.MISTAKES in reports:
        from pipeline.tracking import figures

        _log_figure(run_id, "mistakes", lambda: figures.mistakes(_table(reports[paths.MISTAKES])))
    if stage == "evaluate":
        log_curves(run_id)  # once more, now with the baselines


def log_texts(run_id: str, reports: dict[Path, str]) -> None:
    for file, text in reports.items():
        client().log_text(run_id, text, f"reports/{file.name}")


def log_curves(run_id: str) -> None:
    """Draw what the run itself knows of its training."""
    from pipeline.tracking import figures

    curves = {
        name: pd.DataFrame([{"step": metric.step, name: metric.value} for metric in history])
        for name in (*CURVES, "learning_rate")
        if (history := client().get_metric_history(run_id, name))
    }
    if "learning_rate" in curves:
        schedule = curves.pop("learning_rate")
        _log_figure(run_id, "learning_rate", lambda: figures.learning_rate(schedule))
    baseline = "evaluation/baseline_loss/"
    metrics = client().get_run(run_id).data.metrics
    baselines = {
        name.removeprefix(baseline): metrics[name] for name in metrics if name.startswith(baseline)
    }
    _log_figure(run_id, "loss", lambda: figures.loss(curves, baselines))


def log_model_figures(run_id: str, path: Path) -> None:
    from pipeline.tracking import figures

    model, metadata = load_model(path)
    tokenizer = tokenizer_from_dict(metadata["tokenizer"])
    _log_figure(run_id, "attention", lambda: figures.attention(model, tokenizer))
    if (encoding := model.positional_encoding) is not None:
        _log_figure(run_id, "positional_encoding", lambda: figures.positional_encoding(encoding))


def _log_figure(run_id: str, name: str, draw: Callable[[], Any]) -> None:
    """One that cannot be drawn costs a warning, and not what is told after it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.png"
        try:
            draw().savefig(file)
        except Exception as error:
            log.warning("%s: not drawn (%s)", file.name, store.reason(error))
        else:
            client().log_artifact(run_id, str(file), "figures")


def log_onnx_model(run_id: str, path: Path) -> None:
    """Log the exported file, untouched, as a model that takes text and gives text."""
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    from minigpt.generation.onnx_backend import OnnxBackend

    text = Schema([ColSpec("string", "text")])
    types = {int: "long", float: "double", bool: "boolean"}
    defaults = {"max_new_tokens": 200, **asdict(Sampling())}
    options = [ParamSpec(name, types[type(value)], value) for name, value in defaults.items()]
    packages = ["numpy", "onnxruntime", "pandas"]
    if OnnxBackend(path).tokenizer.kind == "bpe":
        packages.append("tokenizers")
    # as mlflow.pyfunc.log_model, which takes the active run only, and opens a run that is ended again
    model = Model.log(
        None,
        mlflow().pyfunc,
        run_id=run_id,
        name="model",
        python_model=str(Path(__file__).with_name("text_model.py")),
        artifacts={"onnx": str(path)},
        code_paths=["minigpt"],
        signature=ModelSignature(text, text, ParamSchema(options)),
        input_example=pd.DataFrame({"text": ["Once upon a time"]}),
        pip_requirements=[
            f"{package}=={version(package)}" for package in packages
        ],  # given: guessing takes seconds
    )
    client().set_tag(run_id, "onnx_model", model.model_uri)


def write_card(run_id: str) -> None:
    """Describe the run of the present model, in reports/ too."""
    paths.MODEL_CARD.write_text(describe(run_id), encoding="utf-8")


def describe(run_id: str) -> str:
    """Put the model's card on its run; returns it."""
    run = client().get_run(run_id)
    datasets = [
        f"{item.dataset.name} (digest {item.dataset.digest})" for item in run.inputs.dataset_inputs
    ]
    samples = _logged_text(run_id, "reports/samples.md")
    later = {name: text for name, text in run.data.tags.items() if name.startswith(lineage.LATER)}
    card = model_card(
        {**run.data.params, **later}, run.data.metrics, run.data.tags, datasets, samples
    )
    client().log_text(run_id, card, "model_card.md")
    client().set_tag(run_id, DESCRIPTION, card)  # MLflow itself cuts a very long one
    return card


def carry_over(run_id: str, model: Path) -> None:
    """Where the same bytes were made before, what evaluate and export found holds for this run: they will not
    run again."""
    md5 = file_digest(model, "md5")
    earlier = find(md5)
    if earlier is None:
        if restore_reports(
            run_id, Snapshot(), md5
        ):  # a fresh clone, whose reports are of this very model
            log_model_figures(run_id, model)
        return
    found = earlier.data.metrics
    prefixes = tuple(f"{prefix}/" for prefix in PREFIXES.values())
    log_metrics(run_id, {name: found[name] for name in found if name.startswith(prefixes)})
    tags = earlier.data.tags
    kept = {
        name: tags[name]
        for name in tags
        if name.startswith(("onnx_model", "validation_tokens", *lineage.LATER))
    }
    log_tags(run_id, {**kept, "evaluated_in_run": earlier.info.run_id})
    with tempfile.TemporaryDirectory() as folder:
        for kind in {"reports", "figures"} & {
            file.path for file in client().list_artifacts(earlier.info.run_id)
        }:
            client().log_artifacts(
                run_id, client().download_artifacts(earlier.info.run_id, kind, folder), kind
            )


def restored(model: Path) -> dict[str, Any]:
    """How `mlflow.start_run` is to begin the run of the present model, which the store does not know."""
    params = _params_of(model)
    return {
        "run_name": lineage.run_name(params, "HEAD"),
        "tags": {**lineage.origin(), "restored": "true"},
    }


def restore_model(run_id: str, model: Path) -> None:
    """Give a run what the present model, and the reports where they are of it, say of its training."""
    training = load(model)[1]["training"]
    log_params(run_id, _params_of(model))
    restore_training(run_id, Snapshot(), file_digest(model, "md5"), training)
    log_model_figures(run_id, model)
    log_tags(run_id, identity(model, training["held_out"]))


def _params_of(model: Path) -> dict[str, Any]:
    metadata = load(model)[1]
    made_with = {"model": metadata["config"], "train": metadata["train"]}
    return lineage.flatten({**load_params().model_dump(), **made_with})


def restore_training(run_id: str, snapshot: Snapshot, md5: str, summary: dict[str, Any]) -> None:
    """Give a run what `snapshot` knows of the training of the model `md5`; `summary` is as in training.json."""
    reports = snapshot.reports("train", md5)
    rows: list[tuple[float, Metrics]] = []
    known = [
        row
        for file in reports.keys() & CURVES.values()
        for row in _table(reports[file]).to_dict("records")
    ]
    for row in sorted(known, key=lambda row: (row["step"], "val/loss" in row)):
        add_row(rows, row)
    if reports:
        log_rows(run_id, rows)
        log_texts(run_id, reports)
        log_curves(run_id)
    else:
        log_metrics(
            run_id, {name: value for name, value in _numbers(summary).items() if "/" in name}
        )


def restore_reports(run_id: str, snapshot: Snapshot, md5: str) -> bool:
    """Give a run what `snapshot` knows of the evaluation and the export of the model `md5`; whether it knows any."""
    known = False
    for stage in PREFIXES:
        reports = snapshot.reports(stage, md5)
        summary = next((text for file, text in reports.items() if file.suffix == ".json"), None)
        if summary is not None:
            log_reports(run_id, stage, snapshot.params, json.loads(summary), reports)
            known = True
    return known


def _logged_text(run_id: str, path: str) -> str:
    """A text file of a run; empty where it has none."""
    files = client().list_artifacts(run_id, str(Path(path).parent).removeprefix("."))
    if path not in [file.path for file in files]:
        return ""
    return mlflow().artifacts.load_text(f"runs:/{run_id}/{path}")


def _table(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text))


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    flat = lineage.flatten(values, "/")
    return {
        name: value
        for name, value in flat.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
