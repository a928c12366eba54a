"""Kill and resume a real training process; its outputs must stay byte-identical."""

import random
import re
import shutil
import signal
import sys
import time

import pytest
from conftest import Project, checkpoints, wait_for
from filelock import FileLock

from minigpt.common.config import RuntimeConfig

TRAIN = (sys.executable, "-m", "pipeline.train")
MODEL = "models/minigpt.safetensors"


def steps_saved(project: Project) -> int:
    return max((int(file.stem.removeprefix("step-")) for file in checkpoints(project)), default=0)


@pytest.mark.full
def test_repeated_kills_do_not_change_the_outputs(project):
    kills = 50
    project.edit("params.yaml", "max_steps: 30", f"max_steps: {200 * kills}")
    project.edit("params.yaml", "eval_interval: 15", "eval_interval: 100")
    project.edit("params.yaml", "dropout: 0.0", "dropout: 0.1")
    project.run(*TRAIN)
    reports = [
        project.root / name for name in (MODEL, "reports/training.csv", "reports/validation.csv")
    ]
    expected = [report.read_bytes() for report in reports]
    for report in reports:
        report.unlink()
    moments = random.Random(0)
    for _ in range(kills):
        process, before = project.start(*TRAIN), steps_saved(project)
        if moments.random() < 0.5:  # before training or during the first steps
            time.sleep(moments.uniform(0, 3))
        else:
            wait_for(lambda before=before: steps_saved(project) > before)
            time.sleep(moments.uniform(0, 0.4))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the process ended before the kill"
        assert not (project.root / MODEL).exists()
    project.run(*TRAIN)
    assert [report.read_bytes() for report in reports] == expected


def test_file_in_place_of_the_checkpoint_folder_is_reported(project):
    shutil.rmtree(project.root / ".minigpt", ignore_errors=True)
    (project.root / ".minigpt").write_text("")
    out = project.run(*TRAIN, code=1)
    assert re.fullmatch(
        r"\S+\.minigpt/\S+: cannot be used \(Not a directory\); fix it and try again\n", out
    )


@pytest.mark.slow
def test_training_resumes_from_the_last_undamaged_checkpoint(project):
    project.edit("params.yaml", "max_steps: 30", "max_steps: 150")
    project.edit("params.yaml", "eval_interval: 15", "eval_interval: 50")
    project.run(*TRAIN)
    expected = (project.root / MODEL).read_bytes()
    process = project.start(*TRAIN)
    wait_for(lambda: len(checkpoints(project)) == 2)
    process.terminate()
    process.communicate()
    newest, before = sorted(checkpoints(project), reverse=True)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)

    project.edit("params.yaml", "weight_decay: 0.1", "weight_decay: 0.2")
    with FileLock(newest.parent.with_suffix(".lock")):  # as if another process trained
        project.edit("params.yaml", "max_steps: 150", "max_steps: 30")
        assert "starting from step 0" not in project.run(*TRAIN)
        project.edit("params.yaml", "max_steps: 30", "max_steps: 150")
    out = project.run(*TRAIN)
    assert "starting from step 0: the unfinished training differs in train.weight_decay\n" in out
    assert (project.root / MODEL).read_bytes() != expected

    project.edit("params.yaml", "weight_decay: 0.2", "weight_decay: 0.1")
    out = project.run(*TRAIN)
    assert f"{newest}: damaged, or not written by MiniGPT; trying the checkpoint before it" in out
    assert (
        f"resuming at step {int(before.stem.removeprefix('step-'))} of an interrupted training"
        in out
    )
    assert (project.root / MODEL).read_bytes() == expected


@pytest.mark.slow
def test_runtime_parameters_change_no_output(project):
    outputs = [MODEL, "reports/training.csv", "reports/validation.csv"]
    expected = [(project.root / name).read_bytes() for name in outputs]
    for old, new in (
        ("checkpoint_interval: 5", "checkpoint_interval: 7"),
        ("checkpoint_seconds: 60", "checkpoint_seconds: 0.01"),
    ):
        project.edit("params.yaml", old, new)
        assert "Stage 'train' didn't change" in project.run("dvc", "repro", "train")
        project.run(*TRAIN)
        assert [(project.root / name).read_bytes() for name in outputs] == expected
    changed = {"checkpoint_interval", "checkpoint_seconds"}
    assert set(RuntimeConfig.model_fields) == changed  # add new keys to this test
