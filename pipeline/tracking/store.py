"""The tracking store, opened so that several processes can do it at once.

The store is the project's own database, unless MLFLOW_TRACKING_URI names another.
"""

import contextlib
import functools
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from minigpt.cli.mlflow_store import (
    ARTIFACTS,
    DATABASE,
    EXPERIMENT,
    SQLITE,
    configure_mlflow,
    move_artifacts,
    store_uri,
)
from minigpt.common.errors import UserError, one_line
from pipeline.common import paths

DESCRIPTION = "mlflow.note.content"  # the tag that MLflow shows as the description of a run
SERVERS = ("http", "databricks")  # their artifacts are not in the project's folder


def uri() -> str:
    """Return the address of the store."""
    return store_uri(paths.root())


@functools.cache
def mlflow() -> Any:
    """Import MLflow, which takes a second, and open the store."""
    configure_mlflow()
    gc.disable()  # the import creates many objects that stay; scanning them adds a third
    try:
        import mlflow
    finally:
        gc.enable()
    root, address = paths.root(), uri()
    mlflow.set_tracking_uri(address)
    # several processes that create the database at once would corrupt it
    with _lock("open").acquire(timeout=120):
        move_artifacts(address, root)
        if not address.startswith(SERVERS) and mlflow.get_experiment_by_name(EXPERIMENT) is None:
            location = (root / ARTIFACTS).as_uri()
            mlflow.create_experiment(EXPERIMENT, artifact_location=location)
        if (root / DATABASE).exists():
            with contextlib.suppress(OSError):  # Windows may refuse, or the file exists
                (root / "mlflow.db").symlink_to(DATABASE)  # where a bare `mlflow ui` looks
        mlflow.set_experiment(EXPERIMENT)
    return mlflow


def _lock(name: str) -> FileLock:
    """Return a lock beside a local database; for a server, one that excludes this project only."""
    local = uri().startswith(SQLITE)
    file = Path(uri().removeprefix(SQLITE)) if local else paths.root() / ".minigpt/store"
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{file}.{name}.lock")


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
