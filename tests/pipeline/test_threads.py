"""The parameter `threads` decides the number of threads, whatever the environment says."""

import json
import sys

import pytest
import torch
from conftest import runs

from minigpt.export.checks import opened
from pipeline.common.threads import use_threads


@pytest.fixture
def restored_threads():
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "processes", "expected"), [(3, 1, 3), (5, 2, 2), (1, 2, 1), ("auto", 2, None)]
)
def test_processes_share_the_threads(monkeypatch, restored_threads, threads, processes, expected):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert use_threads(threads) == torch.get_num_threads() == (expected or restored_threads)


def test_the_checks_of_an_export_use_the_threads(reproduced):
    with opened((reproduced.root / "models/minigpt.onnx").read_bytes(), 2) as backend:
        assert backend.session.get_session_options().intra_op_num_threads == 2


@pytest.mark.slow
def test_threads_are_a_parameter_of_three_stages(project):
    project.edit("params.yaml", "threads: 1", "threads: 2")
    assert set(json.loads(project.run("dvc", "status", "--json"))) == {
        "train",
        "evaluate",
        "export",
    }
    models = []
    for threads in ("1", "3"):
        project.run(sys.executable, "-m", "pipeline.train", OMP_NUM_THREADS=threads)
        models.append((project.root / "models/minigpt.safetensors").read_bytes())
    assert models[0] == models[1]
    assert [run.data.tags["threads"] for run in runs(project)] == ["2", "2"]
    assert [run.data.params["threads"] for run in runs(project)] == ["2", "2"]
