"""The tracking store, opened so that several processes can do it at once.

The store is the project's own database, unless MLFLOW_TRACKING_URI names another.
"""

import contextlib
import functools
import gc
import logging
import os
from collections.abc import Iterator
from typing import Any

from filelock import FileLock

from minigpt.common.errors import UserError, one_line
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
    os.environ.update({**SETTINGS, **os.environ})
    gc.disable()  # the import creates many objects that stay; scanning them adds a third
    try:
        import mlflow
    finally:
        gc.enable()
    for noisy in ("mlflow", "alembic"):
        # failures are raised as exceptions, too
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    folder, link = paths.root() / "mlruns", paths.root() / "mlflow.db"
    folder.mkdir(exist_ok=True)
    mlflow.set_tracking_uri(uri())
    # several processes that create the database at once would corrupt it
    with FileLock(folder / ".lock", timeout=120):
        if uri() == _local_uri() and mlflow.get_experiment_by_name(EXPERIMENT) is None:
            location = (folder / "artifacts").as_uri()
            mlflow.create_experiment(EXPERIMENT, artifact_location=location)
            with contextlib.suppress(OSError):  # Windows may refuse, or the file exists
                link.symlink_to("mlruns/mlflow.db")  # where a bare `mlflow ui` looks
        mlflow.set_experiment(EXPERIMENT)
    return mlflow


def client() -> Any:
    return mlflow().MlflowClient()


def experiment_id() -> str:
    return str(mlflow().get_experiment_by_name(EXPERIMENT).experiment_id)


def find(filter_string: str) -> Any:
    """Return the latest run that matches, such as "tags.model_md5 = '…'", or None."""
    order = ["attributes.start_time DESC"]
    found = client().search_runs([experiment_id()], filter_string, order_by=order, max_results=1)
    return found[0] if found else None


def find_model(md5: str) -> Any:
    """Return the latest run that made the model with this MD5, or None."""
    return find(f"tags.model_md5 = '{md5}'")


def system_monitor() -> Any:
    """Return MLflow's monitor of processor, memory, disk, network and GPU."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    return SystemMetricsMonitor(run_id=None)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn any failure of the store, the network or the database into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = f"cannot use the tracking store ({one_line(error)}); fix it and try again"
        raise UserError(message) from None
