"""The tracking store, opened so that several processes can do it at once."""

import contextlib
import functools
import gc
import logging
import os
from typing import Any

from filelock import FileLock

from pipeline.common import paths

EXPERIMENT = "minigpt"


def local_uri() -> str:
    """The store that is used where MLFLOW_TRACKING_URI names no other."""
    return f"sqlite:///{paths.root() / 'mlruns' / 'mlflow.db'}"


def is_local() -> bool:
    return os.environ.get("MLFLOW_TRACKING_URI", local_uri()) == local_uri()


def use(uri: str) -> None:
    """Open `uri` from now on."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    mlflow.cache_clear()


@functools.cache
def mlflow() -> Any:
    """MLflow, opened on the project's store; imported only here, since that takes a second."""
    gc.disable()  # what is loaded stays: to look through it again and again takes as long as all the rest
    try:
        return _opened()
    finally:
        gc.freeze()  # later collections leave it alone, too
        gc.enable()


def _opened() -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault(
        "MLFLOW_HTTP_REQUEST_TIMEOUT", "10"
    )  # seconds; of a server that does not answer
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(
            logging.CRITICAL
        )  # what goes wrong comes as an exception, too
    folder = paths.root() / "mlruns"
    folder.mkdir(exist_ok=True)
    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", local_uri()))
    # several processes that create the database at once would corrupt it
    with FileLock(folder / ".lock", timeout=120):
        experiment = mlflow.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            location = (folder / "artifacts").as_uri() if is_local() else None
            try:
                mlflow.create_experiment(EXPERIMENT, artifact_location=location)
            except mlflow.exceptions.MlflowException as error:
                if (
                    error.error_code != "RESOURCE_ALREADY_EXISTS"
                ):  # on a server somebody else may be faster
                    raise
    mlflow.set_experiment(EXPERIMENT)
    link = paths.root() / "mlflow.db"
    if is_local() and not link.is_symlink() and not link.exists():
        with contextlib.suppress(OSError):  # a convenience, which Windows may refuse
            link.symlink_to("mlruns/mlflow.db")  # a bare `mlflow ui` looks there
    return mlflow


def client() -> Any:
    return mlflow().MlflowClient()


def experiment_id() -> str:
    return mlflow().get_experiment_by_name(EXPERIMENT).experiment_id


def find(filter_string: str) -> Any:
    """The latest run that fits, such as "tags.model_md5 = '…'", or None."""
    order = ["attributes.start_time DESC"]
    found = client().search_runs([experiment_id()], filter_string, order_by=order, max_results=1)
    return found[0] if found else None


def reason(error: Exception) -> str:
    """The error as part of one line."""
    return " ".join(str(error).split())[:200]
