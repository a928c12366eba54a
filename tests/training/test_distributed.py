"""Training in two processes on one machine, over gloo."""

import socket
import subprocess
import sys

import pandas as pd
import psutil
import pytest
from conftest import Project, checkpoints, runs, wait_for

from minigpt.common.errors import UserError
from minigpt.training.distributed import launch

TRAIN = (sys.executable, "-m", "pipeline.train")


@pytest.fixture
def two(project) -> Project:
    project.edit("params.yaml", "processes: 1", "processes: 2")
    project.edit("params.yaml", "precision: auto", "precision: float32")
    return project


def curves(project: Project) -> pd.DataFrame:
    training = pd.read_csv(project.root / "reports/training.csv")
    return training.merge(
        pd.read_csv(project.root / "reports/validation.csv"), on="step", how="left"
    )


@pytest.mark.slow
def test_two_processes_have_the_loss_curves_of_one(two):
    # padded rows differ in their number of targets
    two.edit("params.yaml", "layout: packed", "layout: padded")
    two.edit("params.yaml", "accumulation_steps: 1", "accumulation_steps: 2")
    two.edit("params.yaml", "activation_checkpointing: false", "activation_checkpointing: true")
    two.edit("params.yaml", "tied_head: false", "tied_head: true")
    two.run("dvc", "repro", "train")
    shared = curves(two)
    two.edit("params.yaml", "processes: 2", "processes: 1")
    two.run("dvc", "repro", "train")
    pd.testing.assert_frame_equal(shared, curves(two), rtol=1e-3)
    # one run per training, logged by rank 0
    assert [run.info.status for run in runs(two)] == ["FINISHED"] * 2


def workers(pid: int) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(pid).children(recursive=True)
        if "pipeline.train" in child.cmdline()
    ]


@pytest.mark.slow
def test_distributed_training_resumes_after_a_kill(two):
    two.edit("params.yaml", "max_steps: 30", "max_steps: 100")
    two.edit("params.yaml", "eval_interval: 15", "eval_interval: 50")
    two.run(*TRAIN)
    expected = (two.root / "models/minigpt.safetensors").read_bytes()
    process = two.start(*TRAIN)
    wait_for(lambda: checkpoints(two))
    workers(process.pid)[1].kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert (
        "a training process was ended by SIGKILL; rerun to resume from the last checkpoint" in err
    )
    assert "Traceback" not in err

    process, before = two.start(*TRAIN), set(checkpoints(two))
    wait_for(lambda: set(checkpoints(two)) - before)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "stopped at step" in err
    assert "resuming at step" in two.run(*TRAIN)
    assert (two.root / "models/minigpt.safetensors").read_bytes() == expected


@pytest.mark.slow
def test_two_launchers_train_together_and_resume_after_a_kill(two):
    """Two nodes, as in docs/training.md, here on one machine."""
    two.edit("params.yaml", "max_steps: 30", "max_steps: 100")
    two.edit("params.yaml", "eval_interval: 15", "eval_interval: 50")
    two.run(*TRAIN)
    expected = (two.root / "models/minigpt.safetensors").read_bytes()
    (two.root / "models/minigpt.safetensors").unlink()
    nodes = start_nodes(two)
    wait_for(lambda: checkpoints(two))
    workers(nodes[1].pid)[0].kill()
    for node in nodes:
        node.communicate(timeout=60)
        assert node.returncode
    nodes = start_nodes(two)
    logs = [node.communicate(timeout=60)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], logs
    assert sum("resuming at step" in text for text in logs) == 1  # by rank 0
    assert (two.root / "models/minigpt.safetensors").read_bytes() == expected


def start_nodes(project: Project) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "tales"]
    options += ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--local-addr", "127.0.0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "pipeline.train"]
    return [project.start(*command) for _ in range(2)]


def test_far_more_processes_than_cores_are_refused():
    with pytest.raises(UserError, match=r"train\.processes: 1000000 is more than four for each"):
        launch("pipeline.train", 1_000_000)
