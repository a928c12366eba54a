"""The tracking store, opened so that several processes can do it at once.

The store is the project's own database, unless MLFLOW_TRACKING_URI names another.
"""

import contextlib
import functools
import gc
import logging
import os
from collections.abc import Mapping
from typing import Any

from filelock import FileLock

from pipeline.common import paths

EXPERIMENT = "minigpt"
DESCRIPTION = "mlflow.note.content"  # the tag that MLflow shows as the description of a run
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds, for a server that does not answer
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def uri() -> str:
    """Return $MLFLOW_TRACKING_URI, or the address of the project's own database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _local_uri()


def _local_uri() -> str:
    return f"sqlite:///{paths.root() / 'mlruns' / 'mlflow.db'}"


@functools.cache
def mlflow() -> Any:
    """Import MLflow, which takes a second, and open the store."""
    gc.disable()  # the import creates many objects that stay; to scan them doubles its time
    try:
        return _open()
    finally:
        gc.freeze()  # later collections skip them, too
        gc.enable()


def _open() -> Any:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for noisy in ("mlflow", "alembic"):
        # failures are raised as exceptions, too
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    folder = paths.root() / "mlruns"
    folder.mkdir(exist_ok=True)
    mlflow.set_tracking_uri(uri())
    local = uri() == _local_uri()
    # several processes that create the database at once would corrupt it
    with FileLock(folder / ".lock", timeout=120):
        if mlflow.get_experiment_by_name(EXPERIMENT) is None:
            location = (folder / "artifacts").as_uri() if local else None
            try:
                mlflow.create_experiment(EXPERIMENT, artifact_location=location)
            except mlflow.exceptions.MlflowException as error:
                # on a server another machine may have been faster
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
    mlflow.set_experiment(EXPERIMENT)
    link = paths.root() / "mlflow.db"
    if local and not link.is_symlink() and not link.exists():
        with contextlib.suppress(OSError):  # a convenience that Windows may refuse
            link.symlink_to("mlruns/mlflow.db")  # where a bare `mlflow ui` looks
    return mlflow


def client() -> Any:
    return mlflow().MlflowClient()


def experiment_id() -> str:
    return mlflow().get_experiment_by_name(EXPERIMENT).experiment_id


def get_run(run_id: str) -> Any:
    """Return the run with this id, or None if there is none or it was deleted."""
    return find(f"attributes.run_id = '{run_id}'") if run_id else None


def find(filter_string: str) -> Any:
    """Return the latest run that matches, such as "tags.model_md5 = '…'", or None."""
    order = ["attributes.start_time DESC"]
    found = client().search_runs([experiment_id()], filter_string, order_by=order, max_results=1)
    return found[0] if found else None


def find_model(md5: str) -> Any:
    """Return the latest run that made the model with this MD5, or None."""
    return find(f"tags.model_md5 = '{md5}'")


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set all tags in one request."""
    from mlflow.entities import RunTag

    client().log_batch(run_id, tags=[RunTag(name, text) for name, text in tags.items()])


def reason(error: Exception) -> str:
    """Return the error as part of one line."""
    return " ".join(str(error).split())[:200]
