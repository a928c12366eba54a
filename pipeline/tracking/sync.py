"""Upload to the tracking store what it lacks: records, the current model, and models in Git."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from minigpt.common.errors import UserError
from minigpt.common.files import file_digest
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.model.checkpoint import load
from pipeline.common import paths
from pipeline.tracking import reports, store
from pipeline.tracking.history import (
    Snapshot,
    models_in_git,
    record_of_model,
    record_of_snapshot,
    restore_evaluation,
)
from pipeline.tracking.record import Record, find_record, records
from pipeline.tracking.upload import upload


def sync() -> Iterator[str]:
    """Upload what is missing; yield a line for each run.

    Runs whose process is alive are left to that process; one whose process is gone is closed.
    """
    folder = paths.root() / ".minigpt"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "sync.lock"):
        for record in records():
            if not record.in_use():
                record.close_if_abandoned()
                yield from _upload(record)
        if paths.MODEL.exists():
            yield from _sync_current_model()
        for snapshot in models_in_git():
            yield from _sync_snapshot(snapshot)


def _upload(record: Record) -> Iterator[str]:
    try:
        if upload(record):
            yield f"uploaded: {record.info['name']}"
    except UserError:
        record.onnx_model.unlink()
        upload(record)
        yield f"uploaded without its exported model, of another version: {record.info['name']}"


def _sync_current_model() -> Iterator[str]:
    """Complete the run of the current model, and write its model card."""
    md5 = file_digest(paths.MODEL, "md5")
    run, record = store.find_model(md5), find_record(md5)
    if record is not None and record.in_use():
        return
    if run is not None and _complete(run):
        card = store.mlflow().artifacts.load_text(f"runs:/{run.info.run_id}/model_card.md")
        paths.MODEL_CARD.write_text(card, encoding="utf-8")
        return
    record = record or record_of_model(paths.MODEL)
    if not {"evaluation/loss", "export/bytes"} <= record.latest_metrics().keys():
        restore_evaluation(record, Snapshot())
    if _exported():
        record.add_onnx_model(paths.ONNX_MODEL)
    paths.MODEL_CARD.write_text(reports.add_card(record), encoding="utf-8")
    if record.info["status"] == "RUNNING":  # made here
        record.end("FINISHED")
    yield from _upload(record)


def _complete(run: Any) -> bool:
    metrics = {"evaluation/loss", "export/bytes"}
    return metrics <= run.data.metrics.keys() and "onnx_model" in run.data.tags


def _exported() -> bool:
    """Return whether the exported file is of the current model."""
    file = paths.ONNX_MODEL
    return file.exists() and OnnxBackend(file).metadata == load(paths.MODEL)[1]


def _sync_snapshot(snapshot: Snapshot) -> Iterator[str]:
    md5 = snapshot.model_md5
    run, record = store.find_model(md5), find_record(md5)
    onnx_model = b""
    if run is None or "onnx_model" not in run.data.tags:
        onnx_model = snapshot.onnx_model(md5)
    if run is not None and not onnx_model:
        return
    if record is None:
        record = record_of_snapshot(snapshot)
        yield f"restored from commit {snapshot.revision[:7]}: {record.info['name']}"
    if onnx_model:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / paths.ONNX_MODEL.name
            file.write_bytes(onnx_model)
            record.add_onnx_model(file)
    yield from _upload(record)
