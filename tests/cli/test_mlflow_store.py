"""The address of the tracking store, and the models in it."""

import time
from pathlib import Path

import pytest
from conftest import free_port

from minigpt.cli.mlflow_store import download, store_uri
from minigpt.common.errors import UserError

ROOT = Path("/a project")


@pytest.mark.parametrize(
    ("variable", "uri"),
    [
        ("", "sqlite:////a project/mlruns/mlflow.db"),
        (" ", "sqlite:////a project/mlruns/mlflow.db"),
        ("sqlite:///x.db", "sqlite:////a project/x.db"),
        ("sqlite:////x.db", "sqlite:////x.db"),
        ("./mlruns", "/a project/mlruns"),
        ("file:mlruns", "file:/a project/mlruns"),
        ("file:///mlruns", "file:/mlruns"),
        ("http://user:word@host:5000/path", "http://user:word@host:5000/path"),
        ("postgresql+psycopg://host/name", "postgresql+psycopg://host/name"),
        ("databricks", "databricks"),
    ],
)
def test_a_relative_address_begins_at_the_root(monkeypatch, variable, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    assert store_uri(ROOT) == uri


def test_a_folder_that_mlflow_misreads_is_refused():
    with pytest.raises(UserError, match="/a%41: MLflow cannot store runs"):
        store_uri(Path("/a%41"))


def test_a_server_that_is_down_is_named_within_seconds(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:word@127.0.0.1:{free_port()}")
    start = time.monotonic()
    with pytest.raises(UserError, match=r"cannot be loaded from MLflow: .*refused") as error:
        download("models:/minigpt@champion", tmp_path)
    assert time.monotonic() - start < 30
    assert "word" not in str(error.value)
