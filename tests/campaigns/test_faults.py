"""Campaign: one system call of a stage fails, as on a full or broken disk.

A library that is loaded before the C library (fail_calls.c) counts the calls that open files for
writing, write, sync and rename below the project, and lets call number k fail. Then the stage ends
with one line, or tracking warns and the stage succeeds; each out is the old or the new one, whole;
and a run without failing calls gives the outs of an undisturbed pipeline.
"""

import ctypes
import errno
import mmap
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from campaign import check_cases, reproduced_project
from conftest import ROOT, Project
from ruamel.yaml import YAML
from stage_server import StageServer

STAGES = ["build_vocab", "prepare", "train", "evaluate", "export", "train in two processes"]
MODES = [(errno.ENOSPC, False), (errno.EIO, False), (errno.ENOSPC, True)]  # True: all later calls
REASONS = ("disk is full", *map(os.strerror, (errno.ENOSPC, errno.EIO)))
NEVER = 1 << 60
GOLDEN_RATIO = 0.6180339887498949
REDUCED, FULL = 6, 1800
CHANGES = [  # so that each out differs from the old one
    ("val_fraction: auto", "val_fraction: 0.2"),
    ("lowercase: false", "lowercase: true"),
    ("quantize: null", "quantize: int8"),
    ("max_quality_loss: 0.005", "max_quality_loss: 1.0"),
]


class Control(ctypes.Structure):
    """The memory that is shared with fail_calls.c."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("count", "number", "error", "persistent")),
        ("call", ctypes.c_char * 1024),
    )


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
        self._start_server()

    def _start_server(self) -> None:
        if not shutil.which("gcc") and "CI" not in os.environ:
            pytest.skip("needs gcc: apt install gcc libc6-dev")
        library = self.folder / "fail_calls.so"
        source = Path(__file__).with_name("fail_calls.c")
        command = ["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(source)]
        subprocess.run([*command, "-ldl"], check=True)
        shared = self.folder / "control"
        shared.write_bytes(bytes(ctypes.sizeof(Control)))
        with shared.open("r+b") as file:
            self.control = Control.from_buffer(mmap.mmap(file.fileno(), 0))
        env = {
            **self.new.env,
            "LD_PRELOAD": str(library),
            "FAULT_CONTROL": str(shared),
            "FAULT_FOLDER": f"{self.folder}/case/",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": "",
        }
        self.server = StageServer(self.new.root, env)

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
        self.control.count, self.control.number, self.control.call = 0, number, b""
        self.control.error, self.control.persistent = error, persistent
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
    return given.control.count, contents(project, stage)


def outs(stage: str) -> list[str]:
    """Return the outs, metrics and plots of a stage."""
    names = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage.split()[0]]
    listed = [out for kind in ("outs", "metrics", "plots") for out in names.get(kind, [])]
    return [out if isinstance(out, str) else next(iter(out)) for out in listed]


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.rmtree(target)
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def contents(project: Project, stage: str) -> dict[str, Any]:
    """Return the bytes of each out; of a folder, those of each file."""
    return {out: content(project.root / out) for out in outs(stage)}


def content(path: Path) -> Any:
    if path.is_dir():
        return {file.name: file.read_bytes() for file in path.iterdir()}
    return path.read_bytes() if path.exists() else None


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
    place = f"{stage}, {given.control.call.decode()}, {mode}"
    if not given.control.call:
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
