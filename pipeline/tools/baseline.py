"""The end of `make repro`: keep the results as the DVC experiment `baseline`.

The baseline is the state that `make back` restores: the last results of `make repro` with the
user's own parameters and code. Parameters that come from an experiment never replace it. Earlier
baselines of the same commit are `baseline-1`, `baseline-2`, …

python -m pipeline.tools.baseline
"""

import itertools
import logging
import re
import shutil
import tempfile
from pathlib import Path

from pipeline.common.stage import run_stage
from pipeline.common.tries import params_digest, was_tried
from pipeline.tracking.git import all_experiments, checked_git, git

log = logging.getLogger(__name__)
NAME = "baseline"
LOCK, PARAMS = Path("dvc.lock"), Path("params.yaml")


def main() -> None:
    if message := keep():
        log.info(message)


def keep() -> str:
    """Make the results in the workspace the baseline if they are the user's own.

    Returns:
        What was done, or why nothing was; empty if the results are the baseline already.
    """
    saved = experiments()
    lock = LOCK.read_text().strip()
    same = [name for name in saved if is_baseline(name) and _read(saved[name], LOCK) == lock]
    if NAME in same:
        return ""
    if is_try(saved):
        return (
            "these parameters come from an experiment, so the baseline stays; "
            "to continue from them, commit them, then run `make repro`"
        )
    if NAME in saved:
        _rename(NAME, free_name(NAME))
    if same:
        _rename(same[0], NAME)
    else:
        save_state(NAME)
    return f"kept as the DVC experiment {NAME!r}; after an experiment, `make back` goes back to it"


def is_try(saved: dict[str, str]) -> bool:
    """Return whether params.yaml has parameters of an experiment, which the user never chose."""
    digest = params_digest(PARAMS.read_text())
    chosen = {name: commit for name, commit in saved.items() if is_baseline(name)}
    own = {params_digest(_read(commit, PARAMS)) for commit in ("HEAD", *chosen.values())}
    if digest in own:
        return False
    others = (_read(saved[name], PARAMS) for name in saved.keys() - chosen.keys())
    return was_tried(digest) or digest in map(params_digest, others)


def is_baseline(name: str) -> bool:
    return re.fullmatch(rf"{NAME}(-\d+)?", name) is not None


def experiments() -> dict[str, str]:
    """Return the commits of the DVC experiments of the current commit, by name."""
    head = checked_git("rev-parse", "HEAD")
    return {found.name: found.commit for found in all_experiments() if found.base == head}


def free_name(name: str) -> str:
    """Return the first of "name-1", "name-2", … that no experiment of this commit has."""
    taken = experiments()
    names = (f"{name}-{number}" for number in itertools.count(1))
    return next(candidate for candidate in names if candidate not in taken)


def save_state(name: str) -> str:
    """Save the tracked files of the workspace as the DVC experiment `name`; return its commit.

    `dvc exp save` would not do: it fails if an out is missing, as after a failed experiment, and
    takes the outs that exist for results of the current parameters, even if they are not.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        shutil.copyfile(checked_git("rev-parse", "--git-path", "index"), index)
        env = {"GIT_INDEX_FILE": str(index)}
        checked_git("add", "--update", ":/", **env)
        if LOCK.exists():  # also in a project that is not committed yet
            checked_git("add", "--force", "--", str(LOCK), **env)
        tree = checked_git("write-tree", **env)
    return save_tree(name, tree)


def save_tree(name: str, tree: str) -> str:
    """Save a Git tree as the DVC experiment `name` of the current commit; return its commit."""
    identity = []
    if not git("var", "GIT_COMMITTER_IDENT"):  # Git would refuse to commit
        identity = ["-c", "user.name=MiniGPT", "-c", "user.email=minigpt@localhost"]
    commit = checked_git(*identity, "commit-tree", "-p", "HEAD", "-m", f"dvc: save {name}", tree)
    checked_git("update-ref", _reference(name), commit, "")  # "": the name must be free
    return commit


def remove(name: str) -> None:
    checked_git("update-ref", "-d", _reference(name))


def _rename(old: str, new: str) -> None:
    checked_git("update-ref", _reference(new), experiments()[old], "")
    remove(old)


def _read(commit: str, path: Path) -> str:
    return git("show", f"{commit}:./{path}")


def _reference(name: str) -> str:
    """Return where DVC looks for the experiment `name` of the current commit."""
    head = checked_git("rev-parse", "HEAD")
    return f"refs/exps/{head[:2]}/{head[2:]}/{name}"


if __name__ == "__main__":
    run_stage(main)
