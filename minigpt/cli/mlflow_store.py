"""The tracking store of MLflow: its address, its settings, and the models in it.

`pipeline/tracking` opens the store by the same functions.
"""

import logging
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from minigpt.common.errors import UserError, one_line
from minigpt.common.files import file_digest

EXPERIMENT = "minigpt"
DATABASE = "mlruns/mlflow.db"
ARTIFACTS = "mlruns/artifacts"
SQLITE = "sqlite:///"
SHA256_TAG = "sha256"  # of a version in the registry: that of its ONNX file
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # codes of MLflow's errors
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds, for a server that does not answer
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# columns of MLflow's database, in any version
LOCATIONS = """
    SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c WHERE t.type = 'table'
    AND c.name IN ('artifact_location', 'artifact_uri', 'source', 'storage_location')"""


def store_uri(root: Path) -> str:
    """Return $MLFLOW_TRACKING_URI, or the address of the database of the project at `root`.

    A relative address begins at `root`, also in the temporary folder of a DVC experiment.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"{SQLITE}{DATABASE}"
    local = re.fullmatch(r"(sqlite[^:]*:///|file:|)([^:]+)", uri)
    if local is None or uri == "databricks":
        return uri
    if re.search("[%?]", str(root)):
        raise UserError(f"{root}: MLflow cannot store runs below a name with % or ?; rename it")
    return f"{local[1]}{root / local[2]}"


def import_mlflow() -> Any:
    """Import MLflow with short timeouts and without its messages."""
    os.environ.update({**SETTINGS, **os.environ})
    import mlflow

    for noisy in ("mlflow", "alembic", "urllib3"):
        # failures are raised as exceptions, too
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    return mlflow


def move_artifacts(uri: str, root: Path) -> None:
    """Correct the locations in the store of a project that was moved or copied to `root`.

    MLflow stores absolute locations, so that a copy would write into the original.
    """
    database = Path(uri.removeprefix(SQLITE))
    if not (database.is_relative_to(root) and database.exists()):
        return
    with closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        locations = connection.execute(
            "SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,)
        )
        location = str(next(locations, [""])[0])
        old, new = location.removesuffix(f"/{ARTIFACTS}"), root.as_uri()
        if old in (location, new) or not old.startswith("file:"):
            return
        # the experiment "Default" of MLflow has a path for a location
        old_path, new_path = url2pathname(urlsplit(old).path), str(root)
        columns = connection.execute(LOCATIONS).fetchall()
        for before, after in ((f"{old}/", f"{new}/"), (f"{old_path}/", f"{new_path}/")):
            for table, column in columns:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                    f" WHERE substr({column}, 1, ?) = ?",
                    (after, len(before) + 1, len(f"{before}mlruns/"), f"{before}mlruns/"),
                )


def download(uri: str, folder: Path) -> Path:
    """Download the ONNX file of a model in the store.

    Raises:
        UserError: There is no store or no such model, it cannot be read, or the file is another one
            than was promoted.
    """
    root = Path.cwd()
    address = store_uri(root)
    if address == f"{SQLITE}{root / DATABASE}" and not (root / DATABASE).exists():
        raise UserError(
            f"{uri}: no tracking store here; run in the project's folder, or set "
            "MLFLOW_TRACKING_URI"
        )
    mlflow = import_mlflow()
    try:
        move_artifacts(address, root)
        mlflow.set_tracking_uri(address)
        expected = _promoted_sha256(mlflow.MlflowClient(), uri)
        artifact = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    except Exception as error:  # of MLflow, SQLAlchemy or the network
        if getattr(error, "error_code", None) in ABSENT:
            problem = f"not found in MLflow: {one_line(error)}; check the name or the run ID"
        else:
            problem = f"cannot be loaded from MLflow: {reason(error)}; fix it and try again"
        raise UserError(f"{uri}: {problem}") from None
    files = [artifact] if artifact.is_file() else sorted(artifact.rglob("*.onnx"))
    if len(files) != 1:
        raise UserError(
            f"{uri}: contains {len(files)} ONNX files, not one; name a model of MiniGPT"
        )
    if expected not in (None, file_digest(files[0], "sha256")):
        raise UserError(
            f"{uri}: not the file that was promoted (another SHA-256), so it is damaged or was "
            "exchanged; use another version"
        )
    return files[0]


def _promoted_sha256(client: Any, uri: str) -> str | None:
    """Return the SHA-256 that the registry has for a model; None for models outside of it."""
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    if uri.startswith("runs:/"):
        return None
    version = get_model_name_and_version(client, uri)  # type: ignore[no-untyped-call]
    return client.get_model_version(*version).tags.get(SHA256_TAG) if len(version) == 2 else None


def reason(error: Exception) -> str:
    """Return the first cause of `error` in one line.

    The later ones repeat the address of the store, which may hold a password.
    """
    if isinstance(error, UserError):
        return str(error)
    while isinstance(cause := error.__cause__ or error.__context__, Exception):
        error = cause
    return one_line(error) or type(error).__name__
