import contextlib
import re
import signal
import sys

import pytest
from conftest import wait_for
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from minigpt.common.errors import UserError
from pipeline.tools.sweep import parse_space


def test_a_space_is_parsed_into_distributions():
    space = parse_space(
        ["train.learning_rate=3e-4..1e-2", "model.num_layers=2,4,6", "train.batch_size=2..16"]
    )
    assert space == {
        "train.learning_rate": FloatDistribution(3e-4, 1e-2, log=True),
        "model.num_layers": CategoricalDistribution(["2", "4", "6"]),
        "train.batch_size": IntDistribution(2, 16, log=True),
    }


@given(st.text(alphabet="ab.=,0123456789e-", max_size=20))
def test_any_other_space_is_a_user_error(text):
    with contextlib.suppress(UserError):
        (name,) = parse_space([text])
        assert name
        assert text.startswith(f"{name}=")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.learning_rate"], "must be like train.learning_rate=1e-3..1e-2"),
        (["train.learning_rate=0..1"], "from a positive number to a greater one"),
        (["--trials", "0"], "--trials: must be 1 or more"),
        (["--name", "no name"], "--name: 'no name' cannot be part of a branch name"),
    ],
)
def test_bad_arguments_are_one_line(project, arguments, message):
    out = project.run(sys.executable, "-m", "pipeline.tools.sweep", *arguments, code=1)
    assert message in out
    assert "Traceback" not in out


@pytest.mark.slow
def test_a_search_after_a_change_needs_another_name(project):
    command = [sys.executable, "-m", "pipeline.tools.sweep", "model.num_heads=3,5", "--trials", "1"]
    assert "sweep-0: failed (see above)" in project.run(*command, code=1)
    project.edit("params.yaml", "max_steps: 30", "max_steps: 31")
    with (project.root / "data/raw/tales.txt").open("a") as text:
        text.write("\n\nThe end.\n")
    with (project.root / "minigpt/model/model.py").open("a") as code:
        code.write("# changed\n")
    out = project.run(*command, code=1)
    assert out == (
        "--name: 'sweep' was started with another code, text, train.max_steps; "
        "choose another name\n"
    )


def test_two_searches_of_one_name_are_refused(project):
    (project.root / ".minigpt/sweeps").mkdir(parents=True)
    with FileLock(project.root / ".minigpt/sweeps/sweep.lock"):
        out = project.run(sys.executable, "-m", "pipeline.tools.sweep", code=1)
    assert out == "--name: another process runs the search 'sweep'; choose another name\n"


@pytest.mark.full
def test_an_interrupted_search_resumes(project):
    project.edit("params.yaml", "max_steps: 30", "max_steps: 300")
    project.commit()
    command = [
        sys.executable,
        "-m",
        "pipeline.tools.sweep",
        "train.learning_rate=1e-4..1e-2",
        "--trials",
        "2",
    ]
    process = project.start(*command)
    wait_for(
        lambda: (
            list(project.root.glob(".minigpt/checkpoints/*/step-*.safetensors"))
            or process.poll() is not None
        )
    )
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "no trial is finished; the same command resumes the search" in out

    out = project.run(*command)
    assert "of an interrupted training" in out
    best = re.search(r"make promote EXP=(sweep-\d)", out)[1]
    losses = [float(loss) for loss in re.findall(r"^(\d\.\d{4})  sweep", out, re.MULTILINE)]
    assert losses == sorted(losses)
    assert len(losses) == 2
    client = MlflowClient(f"sqlite:///{project.root}/mlruns/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("minigpt").experiment_id])
    assert len(runs) == 2  # the interrupted one went on
    assert {"sweep-1", "sweep-2"} == {run.data.tags["dvc_experiment"] for run in runs}
    assert "is the champion" in project.run(sys.executable, "-m", "pipeline.tools.promote", best)
    assert project.run(*command).count("best:") == 1  # nothing to do
    out = project.run(*command, "model.num_layers=1,2", code=1)
    assert "was started with another space" in out
