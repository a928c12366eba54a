"""Campaigns: numbered cases that try to break MiniGPT, and the counts of their outcomes.

A campaign is a test file `test_<name>.py` with

    REDUCED, FULL        number of cases by default and with `--full`
    run_case(number, folder) -> str
                         try one case, a function of the number alone, and return its outcome;
                         an exception is a failure. `folder` is shared by the cases of a session

`make campaign NAME=kills` runs the cases of test_kills.py at full count. The file
`.minigpt/campaigns/kills.json` has the counts; the next call starts where the last one stopped, and
tries known failures again first. To try single cases:

    PYTHONPATH=tests:. python tests/campaigns/campaign.py kills --case 17
"""

import importlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from conftest import ROOT, Project, reproduce
from rich.console import Console
from rich.progress import track
from ruamel.yaml import YAML

from minigpt.common.files import atomic_write

RunCase = Callable[[int, Path], str]


@cache
def reproduced_project(folder: Path) -> Project:
    """Return a small project with the results of `dvc repro`; cases must not change it."""
    return reproduce(folder / "reproduced")


def outs(stage: str) -> list[str]:
    """Return the outs, metrics and plots of a stage."""
    names = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage.split()[0]]
    listed = [out for kind in ("outs", "metrics", "plots") for out in names.get(kind, [])]
    return [out if isinstance(out, str) else next(iter(out)) for out in listed]


def contents(project: Project, stage: str) -> dict[str, Any]:
    """Return the bytes of each out; of a folder, those of each file."""
    return {out: content(project.root / out) for out in outs(stage)}


def content(path: Path) -> Any:
    if path.is_dir():
        return {file.name: file.read_bytes() for file in path.iterdir()}
    return path.read_bytes() if path.exists() else None


def check_cases(run_case: RunCase, numbers: range, folder: Path) -> None:
    """Run the cases of a pytest item."""
    failures = {number: found for number in numbers if (found := failure(run_case, number, folder))}
    assert not failures, (
        f"{len(failures)} of {len(numbers)} cases: {dict(list(failures.items())[:5])}"
    )


def failure(run_case: RunCase, number: int, folder: Path, outcomes: Any = None) -> str | None:
    """Run one case, add its outcome to the counts `outcomes`, and return why it failed, if so."""
    try:
        outcome = run_case(number, folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:2000]
    if outcomes is not None:
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return None


class Results:
    """Counts of a campaign, in a file.

    Attributes:
        next: Number of the first case that was not tried yet.
        outcomes: Number of cases of each outcome.
        failures: Reason of each failure, by the number of its case.
    """

    def __init__(self, file: Path):
        self.file = file
        state = json.loads(file.read_text()) if file.exists() else {}
        self.next: int = state.get("next", 0)
        self.outcomes: dict[str, int] = state.get("outcomes", {})
        self.failures: dict[str, str] = state.get("failures", {})

    def run(self, run_case: RunCase, number: int, folder: Path) -> None:
        self.failures.pop(str(number), None)
        if reason := failure(run_case, number, folder, self.outcomes):
            self.failures[str(number)] = reason
        self.next = max(self.next, number + 1)

    def save(self) -> None:
        state = {"next": self.next, "outcomes": self.outcomes, "failures": self.failures}
        atomic_write(self.file, json.dumps(state, indent=1) + "\n")

    def summary(self) -> str:
        counts = [f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items())]
        return ", ".join([f"{self.next} cases", *counts, f"{len(self.failures)} failed"])


def until(deadline: float, numbers: list[int], title: str) -> Iterator[int]:
    """Yield the numbers until the deadline, with a progress bar on a terminal."""
    terminal = Console(stderr=True)
    bar = track(numbers, title, console=terminal, disable=not terminal.is_terminal)
    for number in bar:
        if time.monotonic() > deadline:
            return
        yield number


def main(
    name: str,
    minutes: Annotated[float, typer.Option(help="Stop after this time.")] = 60.0,
    case: Annotated[list[int] | None, typer.Option(help="Try only these cases.")] = None,
) -> None:
    """Run a campaign, or go on with it, and print the counts; exit with 1 if a case fails."""
    module = importlib.import_module(f"test_{name}")
    results = Results(ROOT / f".minigpt/campaigns/{name}.json")
    deadline, saved_at = time.monotonic() + 60 * minutes, -math.inf
    numbers = case or [*map(int, results.failures), *range(results.next, module.FULL)]
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
        if case:
            reasons = {number: failure(module.run_case, number, Path(folder)) for number in case}
            print(*(f"case {number}: {reasons[number] or 'passed'}" for number in case), sep="\n")
            sys.exit(any(reasons.values()))
        try:
            for number in until(deadline, numbers, name):
                results.run(module.run_case, number, Path(folder))
                if time.monotonic() - saved_at > 1:
                    results.save()
                    saved_at = time.monotonic()
        finally:
            results.save()
    print(f"{name}: {results.summary()}; {module.FULL - results.next} cases to go")
    for number, reason in results.failures.items():
        print(f"case {number}: {reason}")
    sys.exit(bool(results.failures))


if __name__ == "__main__":
    typer.run(main)
