"""`make back`: go back to the baseline after experiments; the present state is saved first.

python -m pipeline.tools.back
"""

import logging
import shutil
from pathlib import Path

from dvc.repo import Repo

from minigpt.common.errors import UserError, one_line
from pipeline.common import paths
from pipeline.common.stage import run_stage
from pipeline.tools.baseline import NAME, experiments, free_name, remove, save_state, save_tree
from pipeline.tracking.git import checked_git, git

log = logging.getLogger(__name__)
SAVED = "before-back"


def main() -> None:
    _restore_branch()
    with Repo() as repo:
        target = _target(repo)
        name = _save()
        try:
            _move_uncached(repo, paths.root() / ".minigpt" / name)
            repo.experiments.apply(target)
        except Exception as error:  # of DVC, Git or the disk
            raise UserError(
                f"cannot go back ({one_line(error)}); your files are in the experiment {name!r}"
            ) from None
    log.info("back at the baseline; to return to the state before: dvc exp apply %s", name)


def _target(repo: Repo) -> str:
    """Return the commit to go back to.

    Raises:
        UserError: There is none.
    """
    if commit := experiments().get(NAME) or _committed(repo) or _inherited():
        return commit
    raise UserError(
        "nothing to go back to: this commit has no baseline, which `make repro` makes, and its "
        "models are not in DVC's cache; run `git restore params.yaml` and `make repro`"
    )


def _committed(repo: Repo) -> str:
    """Return the current commit if its models are in DVC's cache, else ""."""
    with repo.switch("HEAD"):
        outs = [out for out in repo.index.outs if out.use_cache]
        known = all(out.hash_info and out.cache.exists(out.hash_info.value) for out in outs)
        return "HEAD" if known else ""


def _inherited() -> str:
    """Merge the baseline of the latest commit that has one into this commit; "" if impossible.

    This commit may only have changed a document, for example.
    """
    lines = git("for-each-ref", "--format=%(refname) %(objectname)", f"refs/exps/*/*/{NAME}")
    baselines = {}
    for line in lines.splitlines():
        reference, commit = line.split()
        baselines["".join(reference.split("/")[2:4])] = commit
    for ancestor in git("rev-list", "HEAD").splitlines():
        if ancestor in baselines:
            tree = git("merge-tree", "--write-tree", "HEAD", baselines[ancestor])
            return save_tree(NAME, tree) if len(tree.split()) == 1 else ""
    return ""


def _save() -> str:
    """Save the state as an experiment, unless there is an equal one; return its name."""
    before, name = experiments(), free_name(SAVED)
    tree = git("rev-parse", f"{save_state(name)}^{{tree}}")
    for other, commit in before.items():
        if git("rev-parse", f"{commit}^{{tree}}") == tree:
            remove(name)
            return other
    return name


def _move_uncached(repo: Repo, folder: Path) -> None:
    """Move outs to `folder` that would be lost, because they are not in DVC's cache.

    Such an out was made by an interrupted stage, or by a stage that was not run by DVC.
    """
    for out in repo.index.outs:
        if out.use_cache and out.exists and not out.cache.exists(out.get_hash().value):
            path = Path(out.fs_path).relative_to(Path.cwd())
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
            log.warning("%s is not in DVC's cache; moved to %s", path, target)


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
