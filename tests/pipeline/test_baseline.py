"""The baseline: kept by `make repro`, restored by `make back`, and not replaced by experiments.

DVC runs a pipeline of two stages that take no time, and depend on all that makes results differ.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, wait_for
from dvc.cli import main as dvc

from minigpt.common.errors import UserError
from pipeline.common.tries import mark_try, params_digest
from pipeline.tools import back, baseline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of DVC, which runs in this process to save time
]
MODEL, ONNX = Path("models/minigpt.safetensors"), Path("models/minigpt.onnx")
FILES = {
    ".gitignore": "/.minigpt/\n",
    "code.txt": "code\n",
    "params.yaml": "train:\n  lr: 7  # rate\n  fail: false\n  wait: false\nruntime:\n  every: 1\n",
    "stage.py": """\
import os, sys, time
from pathlib import Path
from ruamel.yaml import YAML
from pipeline.common.stage import run_stage

def main():
    train = YAML(typ="safe").load(Path("params.yaml"))["train"]
    if train["fail"]:
        sys.exit(1)
    while train["wait"]:
        Path("waiting").touch()
        time.sleep(0.1)
    machine = os.environ.get("MACHINE", "author")
    Path("models").mkdir(exist_ok=True)
    text = f"{train['lr']} {machine} {Path('code.txt').read_text()}"
    Path("models/minigpt.safetensors").write_text(text)
    Path("report.txt").write_text(text)

run_stage(main)
""",
    "dvc.yaml": """\
stages:
  train:
    cmd: python stage.py
    deps: [code.txt]
    params: [train]
    outs:
      - models/minigpt.safetensors
      - report.txt: {cache: false}
  export:
    cmd: cp models/minigpt.safetensors models/minigpt.onnx
    deps: [models/minigpt.safetensors]
    outs: [models/minigpt.onnx]
""",
}


def git(*command: str) -> str:
    return subprocess.run(["git", *command], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def author(tmp_path_factory):
    """Return a repository with the results of its author, whose models are not in the cache."""
    root = tmp_path_factory.mktemp("author")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PYTHONPATH", str(ROOT))
        for name, text in FILES.items():
            Path(name).write_text(text)
        git("init", "--quiet", "--initial-branch=main")
        assert dvc(["init", "--quiet"]) == 0
        assert dvc(["repro", "--quiet"]) == 0
        git("add", "--all")
        git("-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "--quiet", "-m", "t")
        shutil.rmtree(".dvc/cache")
        shutil.rmtree("models")
    return root


@pytest.fixture
def workspace(author, tmp_path, monkeypatch):
    """Copy the author's repository; the results of this machine are the author's."""
    shutil.copytree(author, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for variable in [name for name in os.environ if name.startswith(("DVC_", "GIT_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "true")  # would start a process for each command
    monkeypatch.setenv("GIT_AUTHOR_NAME", "t")
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "t@example.com")
    monkeypatch.setenv("GIT_COMMITTER_NAME", "t")
    monkeypatch.setenv("GIT_COMMITTER_EMAIL", "t@example.com")
    return monkeypatch


@pytest.fixture
def machine(workspace):
    """Make this machine compute other results than the author's."""
    workspace.setenv("MACHINE", "mine")
    return workspace


def make_repro() -> str:
    assert dvc(["repro", "--quiet"]) == 0
    return baseline.keep()


def experiment(*changes: str, code: int = 0) -> None:
    settings = [part for change in changes for part in ("-S", change)]
    assert dvc(["exp", "run", "--quiet", *settings]) == code


def make_back() -> None:
    back.main()
    assert dvc(["status", "--quiet"]) == 0  # 1 if anything would run
    assert ONNX.read_text() == MODEL.read_text() == Path("report.txt").read_text()
    assert git("branch", "--show-current") == "main\n"


def edit(name: str, old: str, new: str) -> None:
    assert old in Path(name).read_text()
    Path(name).write_text(Path(name).read_text().replace(old, new))


def content(experiment: str, name: str) -> str:
    return git("show", f"{baseline.experiments()[experiment]}:{name}")


@pytest.mark.parametrize("other", [False, True], ids=["equal results", "other results"])
def test_back_restores_both_models_after_an_experiment(workspace, other):
    if other:
        workspace.setenv("MACHINE", "mine")
    assert "kept as" in make_repro()
    before = MODEL.read_text()
    experiment("train.lr=1")
    make_back()
    assert MODEL.read_text() == before == f"7 {'mine' if other else 'author'} code\n"
    assert [name for name in baseline.experiments() if name.startswith("before")] == []


def test_edits_survive_going_back(machine):
    make_repro()
    edit("code.txt", "code", "better code")
    Path("notes.txt").write_text("untracked")
    make_back()
    assert MODEL.read_text() == "7 mine code\n"
    assert Path("code.txt").read_text() == "code\n"
    assert content("before-back-1", "code.txt") == "better code\n"
    assert Path("notes.txt").read_text() == "untracked"


def test_back_works_after_a_failed_experiment(machine):
    make_repro()
    edit("code.txt", "code", "edited code")
    experiment("train.lr=1", "train.fail=true", code=255)
    assert not MODEL.exists()
    make_back()
    assert MODEL.read_text() == "7 mine code\n"
    assert content("before-back-1", "code.txt") == "edited code\n"
    assert "lr: 1" in content("before-back-1", "params.yaml")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_back_works_after_an_interrupted_experiment(machine, number):
    make_repro()
    edit("code.txt", "code", "edited code")
    command = [sys.executable, "-m", "dvc", "exp", "run", "-S", "train.wait=true"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_for(Path("waiting").exists)
        os.killpg(process.pid, number)
        process.wait(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
    make_back()
    assert MODEL.read_text() == "7 mine code\n"
    assert content("before-back-1", "code.txt") == "edited code\n"


def test_a_dirty_first_state_is_the_baseline(machine):
    edit("params.yaml", "lr: 7", "lr: 5")
    edit("code.txt", "code", "my code")
    make_repro()
    experiment("train.lr=1")
    make_back()
    assert MODEL.read_text() == "5 mine my code\n"


@pytest.mark.parametrize("fails", [False, True])
def test_an_experiment_never_becomes_the_baseline(machine, fails):
    make_repro()
    saved = baseline.experiments()["baseline"]
    experiment("train.lr=1", f"train.fail={str(fails).lower()}", code=255 if fails else 0)
    if fails:  # and its parameters are the only trace of it
        Path("params.yaml").write_text(Path("params.yaml").read_text())
        edit("stage.py", '    if train["fail"]:\n        sys.exit(1)\n', "")
    assert "come from an experiment" in make_repro()
    assert MODEL.read_text() == "1 mine code\n"
    assert baseline.experiments()["baseline"] == saved
    make_back()
    assert MODEL.read_text() == "7 mine code\n"


def test_a_second_repro_keeps_the_baseline(machine):
    make_repro()
    saved = baseline.experiments()
    edit("params.yaml", "every: 1", "every: 2")  # changes no output
    assert make_repro() == ""
    assert baseline.experiments() == saved


def test_edited_parameters_make_another_baseline(machine):
    make_repro()
    edit("params.yaml", "lr: 7", "lr: 5")
    assert "kept as" in make_repro()
    experiment("train.lr=1")
    make_back()
    assert MODEL.read_text() == "5 mine code\n"
    assert "lr: 7" in content("baseline-1", "params.yaml")
    edit("params.yaml", "lr: 5", "lr: 7")  # and back by hand: the first one counts again
    make_repro()
    assert "lr: 7" in content("baseline", "params.yaml")
    assert "lr: 5" in content("baseline-2", "params.yaml")


def test_a_committed_state_needs_no_baseline(machine):
    make_repro()
    git("commit", "--quiet", "--all", "-m", "my results")
    experiment("train.lr=1")
    make_back()
    assert MODEL.read_text() == "7 mine code\n"


def test_a_commit_that_changes_no_result_inherits_the_baseline(machine):
    make_repro()
    Path("notes.txt").write_text("committed")
    git("add", "notes.txt")
    git("commit", "--quiet", "--message", "notes", "notes.txt")
    experiment("train.lr=1")
    make_back()
    assert MODEL.read_text() == "7 mine code\n"
    assert Path("notes.txt").read_text() == "committed"
    assert git("status", "--porcelain", "notes.txt") == ""


def test_committed_parameters_of_an_experiment_are_chosen(machine):
    make_repro()
    experiment("train.lr=1")
    git("commit", "--quiet", "--all", "-m", "better")
    assert "kept as" in make_repro()
    assert "lr: 1" in content("baseline", "params.yaml")


def test_outs_that_are_not_cached_are_moved(machine):
    make_repro()
    for text in ("trained without DVC", "trained again"):
        MODEL.unlink()  # DVC may have linked it to the cache
        MODEL.write_text(text)
        make_back()
        assert MODEL.read_text() == "7 mine code\n"
    moved = {path.read_text() for path in Path(".minigpt/moved").rglob(MODEL.name)}
    assert moved == {"trained without DVC", "trained again"}


def test_untracked_links_and_programs_stay_as_they_are(machine):
    make_repro()
    Path("link").symlink_to("code.txt")
    Path("program").write_text("#!/bin/sh\n")
    Path("program").chmod(0o755)
    before = [Path(name).lstat() for name in ("link", "program")]
    edit("code.txt", "code", "edited code")
    make_back()
    after = [Path(name).lstat() for name in ("link", "program")]
    assert [(stat.st_ino, stat.st_mode) for stat in after] == [
        (stat.st_ino, stat.st_mode) for stat in before
    ]


def test_files_added_after_the_baseline_are_saved(machine):
    make_repro()
    Path("added.txt").write_text("added")
    git("add", "added.txt")
    make_back()
    assert not Path("added.txt").exists()
    assert content("before-back-1", "added.txt") == "added"
    make_back()


def test_untracked_files_in_the_way_are_moved(machine):
    Path("texts").mkdir()
    for name in ("equal", "texts/one", "texts/two"):
        Path(name).write_text("of the baseline")
    git("add", "equal", "texts")
    make_repro()
    git("rm", "--quiet", "--cached", "-r", "equal", "texts")
    shutil.rmtree("texts")
    Path("texts").symlink_to("equal")  # in the place of a folder
    make_back()
    assert Path("texts/two").read_text() == "of the baseline"
    Path("texts/two").unlink()
    Path("texts/two").mkdir()
    Path("texts/two/deep").write_text("mine")  # a folder in the place of a file
    make_back()
    make_back()
    files = sorted(path for path in Path(".minigpt/moved").rglob("*") if not path.is_dir())
    first, second = (Path(*path.parts[3:]) for path in files)
    assert (first, second) == (Path("texts"), Path("texts/two/deep"))
    assert files[0].is_symlink()
    assert files[1].read_text() == "mine"


def test_back_without_a_baseline_is_one_line(workspace):
    with pytest.raises(UserError, match=r"nothing to go back to: .* `make repro`"):
        back.main()


def test_back_restores_a_damaged_lock(machine):
    make_repro()
    Path("dvc.lock").write_text("schema: '2.0'\nstages: [")  # DVC was killed while writing it
    make_back()


def test_a_damaged_lock_in_git_is_one_line(machine):
    Path("dvc.lock").write_text("schema: '2.0'\nstages: [")
    git("commit", "--quiet", "--all", "--message", "damaged")
    with pytest.raises(UserError, match=r"cannot go back .*; .* run `git restore dvc.lock`"):
        back.main()


def test_an_old_git_is_one_line(machine, tmp_path):
    make_repro()
    git("commit", "--quiet", "--allow-empty", "--message", "later")
    program = tmp_path / "git"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = merge-tree ] && exit 129\n{shutil.which("git")} "$@"\n'
    )
    program.chmod(0o755)
    machine.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"install Git 2\.38"):
        back.main()


def test_states_are_saved_without_an_identity_of_git(workspace):
    for variable in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME"):
        workspace.delenv(variable)
    workspace.delenv("GIT_COMMITTER_EMAIL")
    workspace.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    workspace.setenv("GIT_CONFIG_COUNT", "1")
    workspace.setenv("GIT_CONFIG_KEY_0", "user.useConfigOnly")
    workspace.setenv("GIT_CONFIG_VALUE_0", "true")
    baseline.save_state("mine")
    assert "mine" in baseline.experiments()


def test_only_make_repro_without_a_recipe_keeps_a_baseline():
    def commands(*arguments: str) -> str:
        command = ["make", "--dry-run", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "pipeline.tools.baseline" in commands("repro")
    assert "pipeline.tools.baseline" not in commands("repro", "RECIPE=fast")
    assert "pipeline.tools.back" in commands("back")


def test_comments_do_not_make_other_parameters():
    first, second = "a: 1\nruntime: {b: 1}", "# another text\na:   1\nruntime: {b: 2}"
    assert params_digest(first) == params_digest(second) != params_digest("a: 2")
    assert params_digest("a: [") != params_digest("a: {")  # not YAML
    assert params_digest("1: a\nb: c") != params_digest("2: a\nb: c")  # not names of parameters


def test_no_stage_fails_for_marking_a_try(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_EXP_NAME", "try")
    Path("params.yaml").write_text("a: " + "[" * 5000)  # too deep for the parser
    mark_try()
