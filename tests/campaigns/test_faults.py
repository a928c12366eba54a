"""Campaign: one system call of a stage fails, as on a full or broken disk.

A library that is loaded before the C library (fail_calls.c) counts the calls that open files for
writing, write, sync and rename below the project, and lets call number k fail. Then the stage ends
with one line, or tracking warns and the stage succeeds; each out is the old or the new one, whole;
and a run without failing calls gives the outs of an undisturbed pipeline.
"""

import errno
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from campaign import check_cases, contents, outs, reproduced_project
from conftest import Project
from fail_calls import FailingCalls
from stage_server import StageServer

STAGES = ["build_vocab", "prepare", "train", "evaluate", "export", "train in two processes"]
MODES = [(errno.ENOSPC, False), (errno.EIO, False), (errno.ENOSPC, True)]  # True: all later calls
REASONS = ("disk is full", *map(os.strerror, (errno.ENOSPC, errno.EIO)))
NEVER = 1 << 60
GOLDEN_RATIO = 0.6180339887498949
REDUCED, FULL = 4, 1800
CHANGES = [  # so that each out differs from the old one
    ("val_fraction: auto", "val_fraction: 0.2"),
    ("lowercase: false", "lowercase: true"),
]


class Setting:
    """Projects before and after a change of parameters, and the server that runs stages."""

    def __init__(self, folder: Path):
        self.folder = folder / "faults"
        self.folder.mkdir()
        self.old = reproduced_project(folder)
        self.new = self.old.copy(self.folder / "new", tracked=True)
        for change in CHANGES:
            self.new.edit("params.yaml", *change)
        self.new.run("dvc", "repro")
        self.calls = FailingCalls(self.folder, below="case/")
        self.server = StageServer(self.folder, {**self.new.env, **self.calls.env})

    def project(self, stage: str) -> Project:
        """Return a project in which the outs of `stage` are old, and all others are new."""
        shutil.rmtree(self.folder / "case", ignore_errors=True)
        project = self.new.copy(self.folder / "case", tracked=True)
        if stage.endswith("two processes"):
            project.edit("params.yaml", "processes: 1", "processes: 2")
        for out in outs(stage):
            copy(self.old.root / out, project.root / out)
        return project

    def run(
        self, stage: str, number: int = 0, error: int = 0, persistent: bool = False
    ) -> tuple[int, str]:
        """Run a stage whose call number `number` fails with `error`; 0: none fails."""
        self.calls.fail(number, error, persistent)
        return self.server.run(self.folder / "case", f"pipeline.{stage.split()[0]}")


@cache
def setting(folder: Path) -> Setting:
    return Setting(folder)


@cache
def undisturbed(folder: Path, stage: str) -> tuple[int, dict[str, Any]]:
    """Run a stage; return the number of its calls, and its outs."""
    given = setting(folder)
    project = given.project(stage)
    assert given.run(stage, NEVER)[0] == 0
    return given.calls.count, contents(project, stage)


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.rmtree(target)
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def temporary_files(project: Project) -> list[Path]:
    folders = [project.root / name for name in ("data", "models", "reports")]
    files = [file for folder in folders for file in folder.rglob(".*")]
    return [file for file in files if file.name not in (".gitignore", ".gitkeep")]


def run_case(number: int, folder: Path) -> str:
    given, stage = setting(folder), STAGES[number % len(STAGES)]
    step = number // len(STAGES)
    calls, new = undisturbed(folder, stage)
    # all calls in turn, spread evenly from the start
    call = int(step * GOLDEN_RATIO % 1 * calls) + 1
    project = given.project(stage)
    old = contents(project, stage)
    mode = MODES[(number + step) % len(MODES)]
    code, output = given.run(stage, call, *mode)
    place = f"{stage}, {given.calls.failed_call}, {mode}"
    if not given.calls.failed_call:
        return "not reached"
    check_result(project, stage, old, new, code, f"{place}:\n{output}")
    outcome = "ended with a line" if code else "succeeded"

    code, output = given.run(stage)
    assert code == 0, f"rerun after {place}: exit {code}\n{output}"
    assert contents(project, stage) == new, f"rerun after {place}: other outs"
    assert not temporary_files(project), f"rerun after {place}: {temporary_files(project)}"
    return outcome


def check_result(
    project: Project, stage: str, old: dict[str, Any], new: dict[str, Any], code: int, output: str
) -> None:
    """Check what a stage with a failed call leaves behind; `output` follows its description."""
    assert "Traceback" not in output, output
    assert code in (0, 1), f"exit {code}: {output}"
    if code:
        assert any(word in output.splitlines()[-1] for word in REASONS), f"no reason: {output}"
    for name, bytes_left in contents(project, stage).items():
        allowed = [new[name]] if code == 0 else [old[name], new[name]]
        assert bytes_left in allowed, f"{name} is neither old nor new: {output}"
    assert not temporary_files(project), f"{temporary_files(project)}: {output}"


@pytest.mark.slow
def test_failing_system_calls_leave_old_or_new_outs(numbers, campaign_folder):
    check_cases(run_case, numbers, campaign_folder)
