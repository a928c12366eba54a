"""`make back`: go back to the baseline after experiments; the present state is saved first.

python -m pipeline.tools.back
"""

import itertools
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dvc.repo import Repo

from minigpt.common.errors import UserError, one_line
from pipeline.common import paths
from pipeline.common.stage import run_stage
from pipeline.tools.baseline import NAME, experiments, free_name, remove, save_state, save_tree
from pipeline.tracking.git import all_experiments, checked_git, git

log = logging.getLogger(__name__)
SAVED = "before-back"


def main() -> None:
    _restore_branch()
    target = _target()
    name, saved = _save()
    try:
        folder = _free_folder(name)
        for path in _in_the_way(saved, target):
            _move(path, folder, "is not in Git")
        # `dvc exp apply` would pass untracked files through Git, which changes some of them
        checked_git("restore", "--source", target, "--worktree", "--", ":/")
        with Repo() as repo:
            for path in _uncached(repo):
                _move(path, folder, "is not in DVC's cache")
            repo.checkout(force=True)
    except Exception as error:  # of DVC, Git or the disk
        raise UserError(
            f"cannot go back ({one_line(error)}); your files are in the experiment {name!r}"
        ) from None
    log.info("back at the baseline; to return to the state before: dvc exp apply %s", name)


def _target() -> str:
    """Return the commit to go back to.

    Raises:
        UserError: There is none.
    """
    if commit := experiments().get(NAME) or _committed() or _inherited():
        return commit
    raise UserError(
        "nothing to go back to: this commit has no baseline, which `make repro` makes, and its "
        "models are not in DVC's cache; run `git restore params.yaml` and `make repro`"
    )


def _committed() -> str:
    """Return the current commit if its models are in DVC's cache, else "".

    Raises:
        UserError: DVC cannot read the project or the commit.
    """
    try:
        with Repo() as repo, repo.switch("HEAD"):
            outs = [out for out in repo.index.outs if out.use_cache]
            known = all(out.hash_info and out.cache.exists(out.hash_info.value) for out in outs)
    except Exception as error:  # of DVC, or of the library that it reads Git with
        raise UserError(
            f"cannot go back ({one_line(error)}); if dvc.lock is damaged, "
            "run `git restore dvc.lock`, or restore it from an earlier commit"
        ) from None
    return "HEAD" if known else ""


def _inherited() -> str:
    """Merge the baseline of the latest commit that has one into this commit; "" if impossible.

    This commit may only have changed a document, for example.

    Raises:
        UserError: Git is too old to merge outside of the workspace.
    """
    baselines = {baseline.base: baseline.commit for baseline in all_experiments(NAME)}
    for ancestor in git("rev-list", "HEAD").splitlines():
        if ancestor in baselines:
            tree = git("merge-tree", "--write-tree", "HEAD", baselines[ancestor])
            if not tree:  # a conflict would print a tree, too
                raise UserError(
                    "cannot go back: `git merge-tree --write-tree` failed, and this commit has "
                    "only the baseline of an earlier one; install Git 2.38 or newer"
                )
            return save_tree(NAME, tree) if len(tree.split()) == 1 else ""
    return ""


def _save() -> tuple[str, str]:
    """Save the state as an experiment, unless there is an equal one; return its name and commit."""
    before, name = experiments(), free_name(SAVED)
    saved = save_state(name)
    tree = git("rev-parse", f"{saved}^{{tree}}")
    for other, commit in before.items():
        if git("rev-parse", f"{commit}^{{tree}}") == tree:
            remove(name)
            return other, commit
    return name, saved


def _in_the_way(saved: str, target: str) -> Iterator[Path]:
    """Find what the files of `target` would replace although it is not among the saved ones."""
    names = ("--name-only", "--no-renames", "-z")
    added = checked_git("diff", *names, "--diff-filter=A", saved, target).split("\0")
    with tempfile.TemporaryDirectory() as folder:
        env = {"GIT_INDEX_FILE": f"{folder}/index"}
        checked_git("read-tree", target, **env)
        differing = checked_git("diff", *names, "--ignore-submodules=all", **env).split("\0")
    top = Path(checked_git("rev-parse", "--show-toplevel"))
    for name in filter(None, set(added) & set(differing)):
        path = top / name
        parents = (parent for parent in path.parents if parent.is_relative_to(top))
        yield from (parent for parent in parents if parent.is_symlink() or parent.is_file())
        if path.is_symlink() or path.exists():
            yield path


def _uncached(repo: Repo) -> Iterator[Path]:
    """Find the outs that are not in DVC's cache.

    Such an out was made by an interrupted stage, or by a stage that was not run by DVC.
    """
    for out in repo.index.outs:
        if out.use_cache and out.exists and not out.cache.exists(out.get_hash().value):
            yield Path(out.fs_path)


def _free_folder(name: str) -> Path:
    """Return the first of the folders `name`, "name-2", … that does not exist."""
    moved = paths.root() / ".minigpt/moved"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(moved / name for name in names if not (moved / name).exists())


def _move(path: Path, folder: Path, reason: str) -> None:
    name = path.relative_to(checked_git("rev-parse", "--show-toplevel"))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, folder / name)
    log.warning("%s %s; moved to %s", name, reason, folder / name)


def _restore_branch() -> None:
    """Return to the branch that an experiment left, if it was killed (HEAD is detached then)."""
    killed = git("rev-parse", "--verify", "--quiet", "refs/exps/exec/EXEC_BASELINE")
    branch = git("rev-parse", "--abbrev-ref", "@{-1}")
    detached = not git("symbolic-ref", "--quiet", "HEAD")
    head = git("rev-parse", "HEAD")
    if (
        killed
        and detached
        and git("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}") == head
    ):
        checked_git("symbolic-ref", "HEAD", f"refs/heads/{branch}")


if __name__ == "__main__":
    run_stage(main)
