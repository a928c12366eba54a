"""`make sync`: brings to the tracking store what it lacks, from the local store, and from Git and DVC."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt.common.errors import UserError
from minigpt.common.files import file_digest
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.model.checkpoint import load
from pipeline.common import paths
from pipeline.tracking import content, lineage, store
from pipeline.tracking.history import Snapshot, committed
from pipeline.tracking.store import client, mlflow


def sync() -> Iterator[str]:
    """Do it, and say what was done."""
    local = None if store.is_local() else _local_client()
    for run in _waiting(local):
        _send(local, run)
        yield f"sent: {run.info.run_name}"
    if paths.MODEL.exists():
        _complete_present()
        yield f"the tracking store has the run of {paths.MODEL}"
    for snapshot in committed():
        if content.find(snapshot.model_md5) is None:
            yield f"restored from commit {snapshot.revision[:7]}: {_restore(snapshot)}"
        run = content.find(snapshot.model_md5)
        if "onnx_model" not in run.data.tags and (data := snapshot.onnx_model(snapshot.model_md5)):
            yield _log_onnx_model(run, data)


def _local_client() -> Any:
    database = Path(store.local_uri().removeprefix("sqlite:///"))
    return mlflow().MlflowClient(store.local_uri()) if database.exists() else None


def _waiting(local: Any) -> list[Any]:
    """The runs in the local store that a server did not take, the oldest first."""
    if local is None or (experiment := local.get_experiment_by_name(store.EXPERIMENT)) is None:
        return []
    return local.search_runs(
        [experiment.experiment_id],
        "tags.unsent_to != ''",
        order_by=["attributes.start_time ASC"],
        max_results=1000,
    )


def _send(local: Any, run: Any) -> None:
    """Copy a run of the local store to the server, into the one that it has of it, if any."""
    run_id = _counterpart(run)
    for name in run.data.metrics:
        known = {metric.step for metric in client().get_metric_history(run_id, name)}
        history = [
            metric
            for metric in local.get_metric_history(run.info.run_id, name)
            if metric.step not in known
        ]
        content.log_rows(
            run_id, [(m.timestamp / 1000, {"step": m.step, name: m.value}) for m in history]
        )
    content.log_params(run_id, run.data.params)
    content.log_tags(
        run_id,
        {name: text for name, text in run.data.tags.items() if not name.startswith("unsent")},
    )
    if run.inputs.dataset_inputs:
        client().log_inputs(run_id, run.inputs.dataset_inputs)
    with tempfile.TemporaryDirectory() as folder:
        client().log_artifacts(run_id, local.download_artifacts(run.info.run_id, "", folder))
    models = local.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
    )
    for model in models[:1]:  # the latest
        files = Path(model.artifact_location.removeprefix("file://"))
        content.log_onnx_model(run_id, next(files.rglob("*.onnx")))
    client().set_terminated(run_id, run.info.status, run.info.end_time)
    local.delete_tag(run.info.run_id, "unsent_to")


def _counterpart(run: Any) -> str:
    """The id of the run on the server."""
    partial = store.find(f"attributes.run_id = '{run.data.tags['unsent_run']}'")
    same = partial or content.find(run.data.tags.get("model_md5", "none"))
    if same is not None:
        return same.info.run_id
    created = client().create_run(
        store.experiment_id(), run.info.start_time, run_name=run.info.run_name
    )
    return created.info.run_id


def _complete_present() -> None:
    """Send what lies here of the present model."""
    md5 = file_digest(paths.MODEL, "md5")
    if content.find(md5) is None:
        with mlflow().start_run(**content.restored(paths.MODEL)) as active:
            content.restore_model(active.info.run_id, paths.MODEL)
    run = content.find(md5)
    if not {"evaluation/loss", "export/bytes"} <= run.data.metrics.keys():
        content.restore_reports(run.info.run_id, Snapshot(), md5)
    if "onnx_model" not in run.data.tags and _exported():
        content.log_onnx_model(run.info.run_id, paths.ONNX_MODEL)
    held_out = load(paths.MODEL)[1]["training"]["held_out"]
    content.log_tags(
        run.info.run_id, content.identity(paths.MODEL, held_out)
    )  # Git alone did not know all of it
    content.write_card(run.info.run_id)


def _exported() -> bool:
    """Whether the exported file that lies here is of the model that lies here."""
    file = paths.ONNX_MODEL
    return file.exists() and OnnxBackend(file).metadata == load(paths.MODEL)[1]


def _log_onnx_model(run: Any, data: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / paths.ONNX_MODEL.name
        file.write_bytes(data)
        try:
            content.log_onnx_model(run.info.run_id, file)
        except UserError:
            return f"left out: the exported model of {run.info.run_name}, made by another version of MiniGPT"
    return f"its exported model, too: {run.info.run_name}"


def _restore(snapshot: Snapshot) -> str:
    """Make the run of a model that Git knows; returns the run's name."""
    md5, parent = snapshot.model_md5, f"{snapshot.revision}^"
    summary = json.loads(snapshot.reports("train", md5).get(paths.TRAINING, "{}"))
    name = lineage.run_name(snapshot.params, parent)
    tags = {"git_commit": snapshot.revision, "restored": "true"}
    if snapshot.experiment:
        tags |= {
            "dvc_experiment": snapshot.experiment,
            "dvc_baseline": lineage.git("rev-parse", parent),
        }
    made = 1000 * int(lineage.git("show", "--no-patch", "--format=%ct", snapshot.revision))
    run_id = client().create_run(store.experiment_id(), made, tags, name).info.run_id
    content.log_params(run_id, snapshot.params)
    content.restore_training(run_id, snapshot, md5, summary)
    content.restore_reports(run_id, snapshot, md5)
    content.log_tags(
        run_id, {"model_md5": md5, "held_out": str(summary.get("held_out", True)).lower()}
    )
    content.describe(run_id)
    client().set_terminated(run_id, "FINISHED", made)
    return name
