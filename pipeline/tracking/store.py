"""The tracking store, opened so that several processes can do it at once.

The store is the project's own database, unless MLFLOW_TRACKING_URI names another.
"""

import contextlib
import functools
import gc
import logging
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from minigpt.cli.mlflow_store import (
    ARTIFACTS,
    DATABASE,
    EXPERIMENT,
    SQLITE,
    import_mlflow,
    move_artifacts,
    reason,
    store_uri,
)
from minigpt.common.errors import UserError
from pipeline.common import paths

log = logging.getLogger(__name__)
DESCRIPTION = "mlflow.note.content"  # the tag that MLflow shows as the description of a run
SERVERS = ("http", "databricks")  # their artifacts are not in the project's folder
# variables that would direct MLflow to another run or experiment
IGNORED = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")


def uri() -> str:
    """Return the address of the store."""
    return store_uri(paths.root())


@functools.cache
def mlflow() -> Any:
    """Import MLflow, which takes a second, and open the store."""
    _ignore_foreign_runs()
    gc.disable()  # the import creates many objects that stay; scanning them adds a third
    try:
        mlflow = import_mlflow()
    finally:
        gc.enable()
    root, address = paths.root(), uri()
    mlflow.set_tracking_uri(address)
    # several processes that create the database at once would corrupt it
    with lock("open").acquire(timeout=120):
        move_artifacts(address, root)
        experiment = mlflow.get_experiment_by_name(EXPERIMENT)
        if experiment is None and not address.startswith(SERVERS):
            location = (root / ARTIFACTS).as_uri()
            mlflow.create_experiment(EXPERIMENT, artifact_location=location)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            raise UserError(_deleted(experiment.experiment_id))
        if (root / DATABASE).exists():
            with contextlib.suppress(OSError):  # Windows may refuse, or the file exists
                (root / "mlflow.db").symlink_to(DATABASE)  # where a bare `mlflow ui` looks
        mlflow.set_experiment(EXPERIMENT)
    return mlflow


def _ignore_foreign_runs() -> None:
    ignored = [name for name in IGNORED if os.environ.pop(name, None)]
    if ignored:
        log.warning("%s: ignored; a run is found by its model", ", ".join(ignored))


def _deleted(experiment_id: str) -> str:
    # the address of a server is in the environment already, and may hold a password
    local = f"MLFLOW_TRACKING_URI={shlex.quote(uri())} " if uri().startswith(SQLITE) else ""
    command = f"{local}mlflow experiments restore --experiment-id {experiment_id}"
    return f"the experiment {EXPERIMENT!r} was deleted in MLflow; to restore it: `{command}`"


def lock(purpose: str) -> FileLock:
    """Return a lock of the store.

    It lies beside a local database. For a server it is in the project, and excludes neither other
    machines nor other copies of the project.
    """
    local = uri().startswith(SQLITE)
    file = Path(uri().removeprefix(SQLITE)) if local else paths.root() / ".minigpt/store"
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{file}.{purpose}.lock")


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
        message = f"cannot use the tracking store ({reason(error)}); fix it and try again"
        raise UserError(message) from None
