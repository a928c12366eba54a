"""Make MLflow equal to a record: one function, safe to repeat after any failure."""

import logging
from hashlib import sha256
from typing import Any

from minigpt.common.errors import UserError
from minigpt.common.files import file_digest
from pipeline.tracking import store
from pipeline.tracking.datasets import log_datasets, validation_dataset
from pipeline.tracking.onnx_model import DIGEST_TAG, log_onnx_model
from pipeline.tracking.params import READER_PREFIXES
from pipeline.tracking.record import Record
from pipeline.tracking.reports import BASELINE, PREFIXES
from pipeline.tracking.store import client

log = logging.getLogger(__name__)
# metrics and tags of the stages that only read the model
SUMMARY_PREFIXES = tuple(f"{prefix}/" for prefix in PREFIXES.values())
EVALUATION = (*SUMMARY_PREFIXES, *READER_PREFIXES, "validation_tokens", store.DESCRIPTION)
MEASURED = ("val/", "evaluation/", "quantize/")  # on the validation split
MAX_BATCH = 1000  # metrics in a request to MLflow


def upload(record: Record) -> bool:
    """Create or find the run of `record`, log what changed, and return whether anything did.

    What is confirmed is stored at the end: the run, the offset in the metrics, and the time of
    change of each file. After a failure the next upload repeats the requests of this one.
    """
    # a digest, as the address of a store may hold a password
    key = sha256(store.uri().encode()).hexdigest()[:16]
    run = _find_run(record) or _create_run(record)
    run_id = run.info.run_id
    sent = record.read(".uploads").get(key, {})
    if sent.get("run_id") != run_id:
        sent = {"run_id": run_id, "offset": 0, "files": {}}
    files = {
        file.relative_to(record.folder).as_posix(): file.stat().st_mtime_ns
        for file in record.folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }
    changed = [name for name in files if files[name] != sent["files"].get(name)]
    if not changed:
        return False
    # a run that another record made keeps its own metrics and tags of the training
    own = run.data.tags.get("record") == record.id
    if "tags.json" in changed:
        _log_tags_and_params(record, run_id, own)
    if {"datasets.json", "dataset.json"} & set(changed):
        log_datasets(record, run_id)
    sent["offset"] = _log_metrics(record, run_id, sent["offset"], own)
    for artifact in (record.folder / name for name in changed if name.startswith("artifacts/")):
        folder = artifact.relative_to(record.artifacts).parent.as_posix()
        client().log_artifact(run_id, str(artifact), folder if folder != "." else None)
    model_uri = run.data.tags.get("onnx_model", "")
    if record.onnx_model.exists():
        model_uri = _log_onnx_model(record, run)
    if model_uri:
        _log_model_metrics(record, run_id, model_uri.rpartition("/")[2], own)
    if "run.json" in changed:
        _set_status(record, run_id)
    record.update(".uploads", {key: {**sent, "files": files}})
    return True


def _find_run(record: Record) -> Any:
    run = store.find(f"tags.record = '{record.id}'")
    if run is None and "restored" in record.info:
        return store.find_model(record.tags["model_md5"])
    return run


def _create_run(record: Record) -> Any:
    info = record.info
    tags = {"record": record.id} | ({"restored": "true"} if "restored" in info else {})
    start = int(info["start_time"] * 1000)
    return client().create_run(store.experiment_id(), start, tags, info["name"])


def _log_tags_and_params(record: Record, run_id: str, own: bool) -> None:
    from mlflow.entities import Param, RunTag

    tags = [
        RunTag(name, text)
        for name, text in record.tags.items()
        if own or name.startswith(EVALUATION)
    ]
    params = [Param(name, text) for name, text in record.read("params").items() if own]
    client().log_batch(run_id, params=params, tags=tags)


def _log_metrics(record: Record, run_id: str, offset: int, own: bool) -> int:
    """Log the metrics behind a byte offset in their file; return the offset of their end."""
    from mlflow.entities import Metric

    rows, end = record.metrics(offset)
    # a store keeps one of equal points, so they can be sent twice
    points = [
        Metric(name, value, int(row["time"] * 1000), int(row["step"]))
        for row in rows
        for name, value in row.items()
        if name not in ("time", "step") and (own or name.startswith(EVALUATION))
    ]
    for start in range(0, len(points), MAX_BATCH):
        client().log_batch(run_id, points[start : start + MAX_BATCH])
    return end


def _log_onnx_model(record: Record, run: Any) -> str:
    """Log the exported model if the run has another one or none, and drop the file.

    Returns the address of the model, "" without one.
    """
    from mlflow.entities import RunTag

    digest, tags = file_digest(record.onnx_model, "sha256"), run.data.tags
    uri: str = tags.get("onnx_model", "")
    if not uri or tags.get(DIGEST_TAG) != digest:
        try:
            uri = log_onnx_model(record, run.info.run_id, digest)
            new = [RunTag("onnx_model", uri), RunTag(DIGEST_TAG, digest)]
            client().log_batch(run.info.run_id, tags=new)
        except UserError as error:  # of another version
            log.warning("%s: uploaded without its exported model (%s)", run.info.run_name, error)
    record.onnx_model.unlink()
    return uri


def _log_model_metrics(record: Record, run_id: str, model_id: str, own: bool) -> None:
    """Link to the model its lowest validation loss and the latest evaluation and export.

    The run has the same points already, and keeps one of equal points.
    """
    from mlflow.entities import Metric

    rows, dataset = record.metrics()[0], validation_dataset(record)
    points = {
        name: row
        for row in rows
        for name in row
        if name.startswith(SUMMARY_PREFIXES) and not name.startswith(BASELINE)  # of other models
    }
    validations = [row for row in rows if "val/loss" in row]
    if own and validations:
        points["val/loss"] = min(validations, key=lambda row: row["val/loss"])
    metrics = [
        Metric(
            name,
            row[name],
            int(row["time"] * 1000),
            int(row["step"]),
            model_id=model_id,
            **(dataset if name.startswith(MEASURED) else {}),
        )
        for name, row in points.items()
    ]
    client().log_batch(run_id, metrics)


def _set_status(record: Record, run_id: str) -> None:
    info = record.info
    if info["status"] == "RUNNING":
        client().update_run(run_id, "RUNNING")
    else:
        client().set_terminated(run_id, info["status"], int(info["end_time"] * 1000))
