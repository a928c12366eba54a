"""Call Git."""

import os
import subprocess
from typing import NamedTuple

from minigpt.common.errors import UserError, one_line


class Experiment(NamedTuple):
    """A DVC experiment: a commit outside of all branches.

    Attributes:
        name: name of the experiment; experiments on different commits may share one.
        base: commit on which the experiment is based.
        commit: commit of its results.
        time: time of this commit, in seconds.
    """

    name: str
    base: str
    commit: str
    time: int


def all_experiments(name: str = "*") -> list[Experiment]:
    """Return the DVC experiments of all commits, or only those called `name`.

    Their references are refs/exps/<first 2 digits of the base>/<other digits>/<name>; other ones in
    refs/exps are of DVC's own.
    """
    parts = "--format=%(refname) %(objectname) %(committerdate:unix)"
    found = []
    for line in git("for-each-ref", parts, f"refs/exps/*/*/{name}").splitlines():
        reference, commit, time = line.split()
        *_, first, others, title = reference.split("/")
        found.append(Experiment(title, first + others, commit, int(time)))
    return found


def git(*command: str) -> str:
    """Return what Git prints, or "" if Git fails or is not installed."""
    try:
        return _run(command, {}).stdout.strip()
    except OSError:
        return ""


def checked_git(*command: str, **env: str) -> str:
    """Return what Git prints, with additional environment variables.

    Raises:
        UserError: Git fails or is not installed.
    """
    try:
        result = _run(command, env)
    except OSError as error:
        raise UserError(f"git: cannot be run ({error.strerror}); install it") from None
    if result.returncode:
        reason = one_line(result.stderr) or "without a message"
        raise UserError(f"`git {' '.join(command)}` failed: {reason}")
    return result.stdout.strip()


def _run(command: tuple[str, ...], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *command], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )
