"""Campaign: the pipeline is killed at a random moment, then runs again.

SIGKILL ends all processes of `dvc repro` or `dvc exp run`, or only one that runs a stage. The next
run gives the outs of an undisturbed pipeline, and `make sync` leaves no run open. DVC does not
write dvc.lock atomically: a kill in that instant is counted apart, and `git restore` repairs it.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from campaign import check_cases, contents, reproduced_project
from conftest import Project
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

STAGES = ("build_vocab", "prepare", "train", "evaluate", "export")
REDUCED, FULL = 1, 200
# commands, and the parameters that let all stages or the training run again
EXP_RUN = ("dvc", "exp", "run", "-S", "data.val_fraction=0.2")
KINDS = {
    "repro": (("dvc", "repro"), ("val_fraction: auto", "val_fraction: 0.2")),
    "exp run": (EXP_RUN, ("", "")),
    "two processes": (("dvc", "repro"), ("processes: 1", "processes: 2")),
}
ORDER = ("repro", "exp run", "repro", "two processes")


def project(kind: str, folder: Path) -> Project:
    shutil.rmtree(folder / "killed", ignore_errors=True)
    project = reproduced_project(folder).copy(folder / "killed", tracked=True)
    text = (project.root / "params.yaml").read_text()
    (project.root / "params.yaml").write_text(text.replace(*KINDS[kind][1]))
    return project


@cache
def undisturbed(kind: str, folder: Path) -> tuple[dict[str, Any], float]:
    """Return the outs of all stages, and the seconds that the command takes."""
    given, started = project(kind, folder), time.monotonic()
    given.run(*KINDS[kind][0])
    return outs_of(given), time.monotonic() - started


def outs_of(project: Project) -> dict[str, Any]:
    return {stage: contents(project, stage) for stage in STAGES}


def kill(process: subprocess.Popen, rng: Random) -> str:
    """Kill the whole process group, or one process that runs a stage; return which."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        stages = [child for child in children if "-m" in child.cmdline()]
        if stages and rng.random() < 0.3:
            victim = rng.choice(stages)
            command = " ".join(victim.cmdline()[1:])
            victim.kill()
            process.wait(timeout=60)
            return command
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return "all"


def run_case(number: int, folder: Path) -> str:
    rng, kind = Random(number), ORDER[number % len(ORDER)]
    command = KINDS[kind][0]
    expected, seconds = undisturbed(kind, folder)
    given, moment = project(kind, folder), rng.random()
    process = given.start(*command, output=subprocess.DEVNULL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=moment * seconds)
    outcome = "killed" if process.poll() is None else "ended before"
    victim = kill(process, rng)

    try:
        assert YAML(typ="safe").load(given.root / "dvc.lock"), "dvc.lock is empty"
        given.run(*command)
    except (AssertionError, YAMLError) as error:
        if "dvc.lock" not in str(error):
            raise
        given.run("git", "restore", "dvc.lock")
        given.run(*command)
        outcome = "killed while DVC wrote dvc.lock"
    place = f"{kind}, {victim} killed after {moment * seconds:.1f} s"
    differing = [stage for stage in STAGES if outs_of(given)[stage] != expected[stage]]
    assert not differing, f"{place}: outs of {differing} differ"
    given.run(sys.executable, "-m", "pipeline.tools.sync")
    with closing(sqlite3.connect(given.root / "mlruns/mlflow.db")) as database:
        statuses = {status for (status,) in database.execute("SELECT status FROM runs")}
    assert "RUNNING" not in statuses, f"{place}: a run is left RUNNING"
    return f"{outcome} ({kind})"


@pytest.mark.slow
def test_killed_pipelines_continue_to_the_same_outs(numbers, campaign_folder):
    check_cases(run_case, numbers, campaign_folder)
