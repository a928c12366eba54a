"""Make MLflow equal to a record: one function, safe to repeat after any failure."""

import json
import logging
from hashlib import sha256
from pathlib import Path
from typing import Any

from minigpt.common.errors import UserError
from minigpt.common.files import file_digest
from pipeline.tracking import store
from pipeline.tracking.onnx_model import log_onnx_model
from pipeline.tracking.params import READER_PREFIXES
from pipeline.tracking.record import Record
from pipeline.tracking.store import client

log = logging.getLogger(__name__)
# metrics and tags of the stages that only read the model
EVALUATION = ("evaluation/", "export/", *READER_PREFIXES, "validation_tokens", store.DESCRIPTION)
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
    if "dataset.json" in changed:
        _log_dataset(record, run_id)
    sent["offset"] = _log_metrics(record, run_id, sent["offset"], own)
    for artifact in (record.folder / name for name in changed if name.startswith("artifacts/")):
        folder = artifact.relative_to(record.artifacts).parent.as_posix()
        client().log_artifact(run_id, str(artifact), folder if folder != "." else None)
    if record.onnx_model.exists():
        _log_onnx_model(record, run)
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


def _log_dataset(record: Record, run_id: str) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    path, digest = (record.read("dataset")[name] for name in ("path", "digest"))
    dataset = Dataset(Path(path).name, digest, "code", json.dumps({"tags": {"data.path": path}}))
    inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
    try:
        client().log_inputs(run_id, inputs)
    except store.mlflow().exceptions.MlflowException:
        # fails if another run logs the same dataset at that moment
        client().log_inputs(run_id, inputs)


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


def _log_onnx_model(record: Record, run: Any) -> None:
    """Log the exported model if the run has another one or none, and drop the file."""
    from mlflow.entities import RunTag

    digest, tags = file_digest(record.onnx_model, "sha256"), run.data.tags
    if "onnx_model" not in tags or tags.get("onnx_sha256") != digest:
        try:
            uri = log_onnx_model(run.info.run_id, record.onnx_model)
            new = [RunTag("onnx_model", uri), RunTag("onnx_sha256", digest)]
            client().log_batch(run.info.run_id, tags=new)
        except UserError as error:  # of another version
            log.warning("%s: uploaded without its exported model (%s)", run.info.run_name, error)
    record.onnx_model.unlink()


def _set_status(record: Record, run_id: str) -> None:
    info = record.info
    if info["status"] == "RUNNING":
        client().update_run(run_id, "RUNNING")
    else:
        client().set_terminated(run_id, info["status"], int(info["end_time"] * 1000))
