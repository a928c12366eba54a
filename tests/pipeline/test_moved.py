"""Projects that were moved or copied: they write into their own folder only."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from conftest import ROOT, Project

from minigpt.cli.mlflow_store import move_artifacts


def contents(root: Path) -> dict[Path, str]:
    files = (file for file in root.rglob("*") if file.is_file())
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def promote(project: Project) -> str:
    return project.run(sys.executable, "-m", "pipeline.tools.promote")


def champion_text(project: Project) -> str:
    model = ("--model", "models:/minigpt@champion", "--max-new-tokens", "20", "--seed", "1")
    return project.run("minigpt-cli", "generate", "--prompt", "The ", *model)


def locations(project: Project) -> list[str]:
    """Return where the store of a project keeps its artifacts."""
    with closing(sqlite3.connect(project.root / "mlruns/mlflow.db")) as database:
        query = """
            SELECT artifact_location FROM experiments UNION SELECT artifact_uri FROM runs UNION
            SELECT storage_location FROM model_versions UNION
            SELECT artifact_location FROM logged_models"""
        return [location for (location,) in database.execute(query)]


@pytest.mark.slow
def test_a_copied_project_writes_into_its_own_folder(project, tmp_path):
    project.run(sys.executable, "-m", "pipeline.tools.sync")
    promote(project)
    text, before = champion_text(project), contents(project.root)
    copy = project.copy(tmp_path / "copy", tracked=True)
    assert champion_text(copy) == text
    copy.run("dvc", "exp", "run", "-S", "train.learning_rate=1e-2")
    copy.run("dvc", "exp", "run", "--temp", "-S", "train.seed=1")
    assert "minigpt version 2 is the champion" in promote(copy)
    assert contents(project.root) == before
    assert [place for place in locations(copy) if str(copy.root) not in place] == []

    text = champion_text(copy)
    copy.root = copy.root.rename(tmp_path / "moved")
    assert champion_text(copy) == text


def test_locations_outside_the_old_project_are_kept(tmp_path):
    database = tmp_path / "mlruns/mlflow.db"
    database.parent.mkdir()
    places = {
        "/old/mlruns/0": f"{tmp_path}/mlruns/0",
        "file:///old/mlruns/artifacts/1": f"{(tmp_path / 'mlruns').as_uri()}/artifacts/1",
        "file:///old/mlruns2/1": "file:///old/mlruns2/1",
        "s3://old/mlruns/artifacts/1": "s3://old/mlruns/artifacts/1",
    }
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE experiments (name, artifact_location)")
        connection.execute("CREATE TABLE runs (artifact_uri)")
        experiment = ("minigpt", "file:///old/mlruns/artifacts")
        connection.execute("INSERT INTO experiments VALUES (?, ?)", experiment)
        connection.executemany("INSERT INTO runs VALUES (?)", [(place,) for place in places])
        connection.commit()
        move_artifacts(f"sqlite:///{database}", tmp_path)
        found = [place for (place,) in connection.execute("SELECT artifact_uri FROM runs")]
    connection.close()
    assert found == list(places.values())


def test_make_rebuilds_the_environment_of_a_moved_project(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, old)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=old, check=True)
    (old / ".venv/.ready").touch()
    assert "venv" not in commands_of_setup(old)
    old.rename(new)
    assert "-m venv --clear .venv" in commands_of_setup(new)


def commands_of_setup(root: Path) -> str:
    """Return the commands that `make setup` would run at `root`."""
    env = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--dry-run", "setup"]
    return subprocess.run(
        command, cwd=root, env=env, capture_output=True, text=True, check=True
    ).stdout
