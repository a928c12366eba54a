"""Tracking servers that are down, fail or are slow: one warning, and no run is lost."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from conftest import Project, free_port
from mlflow import MlflowClient
from tracking_server import open_gate, tracker

STEPS = [5, 10, 15, 20, 25, 30]


@pytest.fixture(scope="module")
def mlflow_server(reproduced, tmp_path_factory):
    project = reproduced.copy(tmp_path_factory.mktemp("server") / "project")
    with tracker(project, f"sqlite:///{project.root}/server.db") as url:
        yield url


@pytest.fixture
def gate(mlflow_server):
    with open_gate(mlflow_server) as gate:
        yield gate


def train_with_seed(project: Project, seed: int) -> None:
    old = "seed: 0                     # random seed of initial"
    project.edit("params.yaml", old, old.replace("0", str(seed)))


def runs(uri: str, seed: int) -> list:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("minigpt")
    return (
        client.search_runs([experiment.experiment_id], f"params.`train.seed` = '{seed}'")
        if experiment
        else []
    )


def dataset_names(run) -> list[str]:
    return sorted(dataset.dataset.name for dataset in run.inputs.dataset_inputs)


def check_whole(uri: str, run) -> None:
    client = MlflowClient(uri)
    assert run.info.status == "FINISHED"
    assert "model_md5" in run.data.tags
    assert [
        metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")
    ] == STEPS
    assert {"samples.json", "model_card.md"} <= {
        file.path for file in client.list_artifacts(run.info.run_id)
    }
    reports = {file.path for file in client.list_artifacts(run.info.run_id, "reports")}
    assert {"reports/training.csv", "reports/validation.csv"} <= reports
    assert dataset_names(run) == ["tales-train", "tales-val"]


@pytest.mark.parametrize(
    ("seed", "trouble", "begins"),
    [
        pytest.param(1, "away", "", marks=pytest.mark.full),
        (2, "500", "log-batch"),
        pytest.param(3, "500", "", marks=pytest.mark.full),
        pytest.param(4, "away", "runs/update", marks=pytest.mark.full),
    ],
)
@pytest.mark.slow
def test_a_server_that_fails_gets_it_later(project, gate, seed, trouble, begins):
    train_with_seed(project, seed)
    gate.trouble, gate.begins = trouble, begins
    out = project.run(sys.executable, "-m", "pipeline.train", MLFLOW_TRACKING_URI=gate.url)
    assert out.count("tracking failed") == 1
    assert "Traceback" not in out
    assert out.count("the run is recorded, but not uploaded") == 1
    assert not (project.root / "mlruns/mlflow.db").exists()
    recorded = "".join(file.read_text() for file in project.root.glob(".minigpt/runs/*/*.json*"))
    assert gate.url not in recorded  # an address may hold a password

    gate.trouble = "none"
    out = project.run(sys.executable, "-m", "pipeline.tools.sync", MLFLOW_TRACKING_URI=gate.url)
    assert f"uploaded: seed={seed}" in out
    (run,) = runs(gate.target, seed)  # the one that was begun there went on
    check_whole(gate.target, run)
    assert "uploaded" not in project.run(
        sys.executable, "-m", "pipeline.tools.sync", MLFLOW_TRACKING_URI=gate.url
    )
    assert len(runs(gate.target, seed)) == 1


@pytest.mark.slow
def test_a_server_gets_the_model_of_a_project_at_any_path(reproduced, mlflow_server, tmp_path):
    project = reproduced.copy(tmp_path / "my próject #1")
    project.run(sys.executable, "-m", "pipeline.tools.sync", MLFLOW_TRACKING_URI=mlflow_server)
    out = project.run(
        sys.executable, "-m", "pipeline.tools.promote", MLFLOW_TRACKING_URI=mlflow_server
    )
    assert "is the champion" in out


def test_ui_prints_the_page_of_a_running_server(project, mlflow_server):
    out = project.run(sys.executable, "-m", "pipeline.tools.ui", MLFLOW_TRACKING_URI=mlflow_server)
    assert out.startswith(f"{mlflow_server}/#/experiments/")
    assert out.count("\n") == 1


@pytest.mark.full
def test_a_server_down_for_all_stages_gets_one_run(project, gate):
    train_with_seed(project, 6)
    gate.trouble = "away"
    for stage in ("train", "evaluate", "export"):
        project.run(sys.executable, "-m", f"pipeline.{stage}", MLFLOW_TRACKING_URI=gate.url)
    assert len(list(project.root.glob(".minigpt/runs/*/run.json"))) == 1

    gate.trouble = "none"
    project.run(sys.executable, "-m", "pipeline.tools.sync", MLFLOW_TRACKING_URI=gate.url)
    (run,) = runs(gate.target, 6)
    check_whole(gate.target, run)
    assert {"evaluation/loss", "export/bytes"} <= run.data.metrics.keys()
    figures = {
        file.path for file in MlflowClient(gate.target).list_artifacts(run.info.run_id, "figures")
    }
    assert {"figures/loss.png", "figures/attention.png", "figures/mistakes.png"} <= figures
    out = project.run(sys.executable, "-m", "pipeline.tools.promote", MLFLOW_TRACKING_URI=gate.url)
    assert "is the champion" in out


@pytest.mark.full
def test_a_slow_server_gets_all(project, gate):
    train_with_seed(project, 5)
    gate.trouble = "slow"
    out = project.run(sys.executable, "-m", "pipeline.train", MLFLOW_TRACKING_URI=gate.url)
    assert "tracking" not in out
    (run,) = runs(gate.target, 5)
    check_whole(gate.target, run)
    assert not (project.root / "mlruns/mlflow.db").exists()


@contextmanager
def postgres(folder: Path):
    """Run a PostgreSQL server; yield its address."""
    port, user = free_port(), {}
    if os.getuid() == 0:  # PostgreSQL does not run as root
        shutil.chown(folder, "postgres")
        user = {"user": "postgres", "cwd": folder}
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [_program(program), *arguments], check=True, stdout=subprocess.DEVNULL, **user
        )

    run("initdb", "--pgdata", str(data), "--auth", "trust", "--username", "minigpt", "--no-sync")
    options = f"-p {port} -h 127.0.0.1 -k {folder} -F"
    run(
        "pg_ctl",
        "--pgdata",
        str(data),
        "--options",
        options,
        "--log",
        str(folder / "log"),
        "--wait",
        "start",
    )
    try:
        yield f"postgresql+psycopg://minigpt@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "--pgdata", str(data), "--mode", "immediate", "stop")


def _program(name: str) -> str:
    folders = [*map(str, Path("/usr/lib/postgresql").glob("*/bin")), os.environ["PATH"]]
    return shutil.which(name, path=os.pathsep.join(folders)) or ""


@pytest.mark.full
def test_several_trainings_share_a_postgresql_server(reproduced, tmp_path):
    if not _program("initdb"):
        pytest.skip("needs PostgreSQL: apt install postgresql")
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'psycopg[binary]'")
    writers = {seed: reproduced.copy(tmp_path / f"writer-{seed}") for seed in (1, 2, 3)}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())  # pytest's own are private
        backend = stack.enter_context(postgres(Path(folder)))
        url = stack.enter_context(tracker(writers[1], backend))
        processes = []
        for seed, project in writers.items():
            train_with_seed(project, seed)
            processes.append(
                project.start(sys.executable, "-m", "pipeline.train", MLFLOW_TRACKING_URI=url)
            )
        for process in processes:
            _, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
            assert "tracking" not in err
        for seed in writers:
            (run,) = runs(url, seed)
            check_whole(url, run)
        assert len(MlflowClient(url).search_experiments(filter_string="name = 'minigpt'")) == 1
        project = writers[1]
        project.edit(
            "params.yaml", "max_new_tokens: 30", "max_new_tokens: 4000"
        )  # a card that no column holds
        for stage in ("evaluate", "export"):
            project.run(sys.executable, "-m", f"pipeline.{stage}", MLFLOW_TRACKING_URI=url)
        out = project.run(sys.executable, "-m", "pipeline.tools.promote", MLFLOW_TRACKING_URI=url)
        assert re.search("minigpt version 1 is the champion", out)
        command = ["minigpt-cli", "generate", "--prompt", "The ", "--seed", "1"]
        tracked = project.run(
            *command, "--model", "models:/minigpt@champion", MLFLOW_TRACKING_URI=url
        )
        assert tracked == project.run(*command)
