"""Upload to the tracking store what it lacks: records, the current model, and models in Git."""

from collections.abc import Iterator

from filelock import Timeout

from minigpt.common.files import atomic_write
from pipeline.common import paths
from pipeline.tracking import store
from pipeline.tracking.history import Snapshot, find_or_restore, models_in_git, restore_evaluation
from pipeline.tracking.record import Record, find_record, records
from pipeline.tracking.reports import is_current
from pipeline.tracking.upload import upload


def sync() -> Iterator[str]:
    """Upload what is missing; yield a line for each run.

    Runs whose process is alive are left to that process; one whose process is gone is closed.
    """
    store.mlflow()
    with store.lock("sync"):
        snapshots = {snapshot.model_md5: snapshot for snapshot in (*models_in_git(), Snapshot())}
        for md5, snapshot in snapshots.items():
            # the card of the current model is made from a record
            if md5 and not find_record(md5) and not (snapshot.revision and _is_complete(md5)):
                yield f"restored: {find_or_restore(snapshot).info['name']}"
        for record in records():
            try:
                with record.lock.acquire(blocking=False):
                    yield from _sync_record(record, snapshots)
            except Timeout:
                continue


def _is_complete(md5: str) -> bool:
    """Return whether the store has the evaluation and the exported file of a model."""
    run = store.find_model(md5)
    metrics, tags = {"evaluation/loss", "export/bytes"}, {"onnx_model", "onnx_sha256"}
    return bool(run) and metrics <= run.data.metrics.keys() and tags <= run.data.tags.keys()


def _sync_record(record: Record, snapshots: dict[str, Snapshot]) -> Iterator[str]:
    record.close_if_abandoned()
    md5 = record.tags.get("model_md5")
    if md5 in snapshots and not _is_complete(md5):
        restore_evaluation(record, snapshots[md5])
    if upload(record):
        yield f"uploaded: {record.info['name']}"
    if is_current(record):
        atomic_write(paths.MODEL_CARD, record.read_artifact("model_card.md"))
