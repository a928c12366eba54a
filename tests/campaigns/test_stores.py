"""Campaign: the training stage with a tracking store that is full, read-only, slow or broken.

A server fails or dies after some requests, or answers late; a local store cannot be written after
some calls. The stage ends well with the same model and at most one warning, and `make sync`
afterwards leaves no run open.
"""

import atexit
import errno
import shutil
import sqlite3
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path
from random import Random

import pytest
from campaign import check_cases, contents, reproduced_project
from conftest import Project
from fail_calls import FailingCalls
from mlflow import MlflowClient
from stage_server import StageServer
from tracking_server import Gate, open_gate, tracker

TROUBLES = ("500", "full", "away", "read-only", "slow")
REDUCED, FULL = len(TROUBLES), 40 * len(TROUBLES)
ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS}


class Setting:
    """A project, the server that runs its stages, and a tracking server behind a gate."""

    def __init__(self, folder: Path):
        self.folder = folder / "stores"
        self.folder.mkdir()
        self.reproduced = reproduced_project(folder)
        self.expected = contents(self.reproduced, "train")
        self.calls = FailingCalls(self.folder, below="case/mlruns/")
        self.stages = StageServer(self.folder, {**self.reproduced.env, **self.calls.env})
        self._stack = ExitStack()
        atexit.register(self._stack.close)

    def project(self) -> Project:
        shutil.rmtree(self.folder / "case", ignore_errors=True)
        return self.reproduced.copy(self.folder / "case", tracked=True)

    @cache  # noqa: B019 (lives as long as the process)
    def gate(self) -> type[Gate]:
        backend = f"sqlite:///{self.folder}/server.db"
        url = self._stack.enter_context(tracker(self.reproduced, backend))
        return self._stack.enter_context(open_gate(url))


@cache
def setting(folder: Path) -> Setting:
    return Setting(folder)


def run_case(number: int, folder: Path) -> str:
    given, trouble = setting(folder), TROUBLES[number % len(TROUBLES)]
    project, spared, env = given.project(), Random(number).choice((0, 1, 5, 20, 40)), {}
    if trouble in ERRORS:
        given.calls.fail(5 * spared + 1, ERRORS[trouble], persistent=True)
    else:
        gate = given.gate()
        gate.trouble, gate.spared, gate.matches = trouble, spared, 0
        env = {"MLFLOW_TRACKING_URI": gate.url}
    place = f"{trouble} after {spared}"
    code, output = given.stages.run(project.root, "pipeline.train", **env)
    assert code == 0, f"{place}: exit {code}\n{output}"
    assert output.count("tracking failed") <= 1, f"{place}:\n{output}"
    assert "Traceback" not in output, f"{place}:\n{output}"
    assert contents(project, "train") == given.expected, f"{place}: other outs"

    given.calls.fail(0)
    if env:
        gate.trouble = "none"
    code, after = given.stages.run(project.root, "pipeline.tools.sync", **env)
    assert code == 0, f"sync after {place}: exit {code}\n{after}"
    assert "RUNNING" not in statuses(project, gate.target if env else None), place
    warned = "a warning" if "tracking failed" in output else "no warning"
    return f"{warned} ({trouble})"


def statuses(project: Project, server: str | None) -> set[str]:
    """Return the statuses of all runs in the store of a server or a project."""
    if server:
        client = MlflowClient(server)
        experiment = client.get_experiment_by_name("minigpt")
        return {run.info.status for run in client.search_runs([experiment.experiment_id])}
    with closing(sqlite3.connect(project.root / "mlruns/mlflow.db")) as database:
        return {status for (status,) in database.execute("SELECT status FROM runs")}


@pytest.mark.slow
def test_broken_stores_never_stop_a_training(numbers, campaign_folder):
    check_cases(run_case, numbers, campaign_folder)
