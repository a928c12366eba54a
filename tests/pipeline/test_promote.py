"""Promotion, and the promoted model on the command line and on MLflow's server."""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import Project, free_port, is_up, server, wait_for
from mlflow import MlflowClient


@pytest.fixture(scope="module")
def promoted(with_experiments: Project, tmp_path_factory) -> Project:
    """Return a project whose default model is the champion."""
    folder = tmp_path_factory.mktemp("promoted")  # a process may run this fixture several times
    project = with_experiments.copy(folder / "project", tracked=True)
    project.run("git", "restore", ".")
    project.run("dvc", "checkout")
    out = project.run(sys.executable, "-m", "pipeline.tools.promote")
    assert "minigpt version 1 is the champion" in out
    return project


def champion(project: Project):
    return MlflowClient(f"sqlite:///{project.root}/mlruns/mlflow.db").get_model_version_by_alias(
        "minigpt", "champion"
    )


def logged_model(project: Project):
    client = MlflowClient(f"sqlite:///{project.root}/mlruns/mlflow.db")
    return client.get_logged_model(champion(project).source.removeprefix("models:/"))


def test_the_champion_is_the_exported_file_with_its_card(promoted, tmp_path):
    version = champion(promoted)
    assert "bits per character" in version.description
    assert "champion already" in promoted.run(sys.executable, "-m", "pipeline.tools.promote")
    model = logged_model(promoted)
    (file,) = Path(model.artifact_location.removeprefix("file://")).rglob("*.onnx")
    assert file.read_bytes() == (promoted.root / "models/minigpt.onnx").read_bytes()


def test_an_exchanged_file_is_refused(promoted, tmp_path):
    copy = promoted.copy(tmp_path / "copy", tracked=True)
    for file in (copy.root / "mlruns/artifacts").rglob("model.onnx"):
        file.write_bytes(file.read_bytes() + b"\0")
    out = copy.run("minigpt-cli", "generate", "--model", "models:/minigpt@champion", code=1)
    assert "models:/minigpt@champion: not the file that was promoted" in out
    assert out.count("\n") == 1


def test_the_command_line_takes_mlflow_models(promoted):
    command = ["minigpt-cli", "generate", "--prompt", "The ", "--seed", "3"]
    expected = promoted.run(*command)
    assert promoted.run(*command, "--model", "models:/minigpt@champion") == expected
    tracked = f"runs:/{champion(promoted).run_id}/{logged_model(promoted).name}"
    assert promoted.run(*command, "--model", tracked) == expected
    info = json.loads(promoted.run("minigpt-cli", "info", "--json", "--model", "models:/minigpt/1"))
    assert info["vocabulary"]["type"] == "char"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "models:/minigpt@nobody"], "models:/minigpt@nobody: not found in MLflow"),
        (["--model", "runs:/0123/model"], "runs:/0123/model: not found in MLflow"),
        (
            ["--model", "models:/minigpt/1", "--backend", "torch"],
            "MLflow stores the ONNX file only; use --backend onnx",
        ),
    ],
)
def test_a_missing_model_is_one_line(promoted, options, message):
    out = promoted.run("minigpt-cli", "generate", *options, code=1)
    assert message in out
    assert out.count("\n") == 1


def test_a_command_elsewhere_makes_no_store(promoted, tmp_path):
    elsewhere = promoted.copy(tmp_path / "elsewhere")
    out = elsewhere.run("minigpt-cli", "generate", "--model", "models:/minigpt@champion", code=1)
    assert "no tracking store here" in out
    assert not (elsewhere.root / "mlflow.db").exists()


def test_mlflow_serves_the_champion(promoted):
    port = free_port()
    uri = f"sqlite:///{promoted.root}/mlruns/mlflow.db"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "--model-uri",
        "models:/minigpt@champion",
    ]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", port]
    with server(promoted, *command, MLFLOW_TRACKING_URI=uri):
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}/ping"))
        body = {
            "inputs": {"text": ["The ", "A"]},
            "params": {"max_new_tokens": 9, "seed": 3, "top_p": 0.9},
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            predictions = json.load(response)["predictions"]
        body["params"] = {"temperature": -1.0}
        request.data = json.dumps(body).encode()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code == 400
        answer = json.load(refused.value)
        assert answer["error_code"] == "INVALID_PARAMETER_VALUE"
        assert answer["message"].endswith(
            "temperature: must be a number of 0 (greedy) or more, but it is -1.0"
        )
        assert "stack_trace" not in answer
    command = [
        "minigpt-cli",
        "generate",
        "--seed",
        "3",
        "--top-p",
        "0.9",
        "--max-new-tokens",
        "9",
        "--json",
        "--prompt",
    ]
    for prompt, row in zip(("The ", "A"), predictions, strict=True):
        assert row["text"] == json.loads(promoted.run(*command, prompt))["text"]


def test_a_model_without_a_run_is_not_promoted(project):
    out = project.run(sys.executable, "-m", "pipeline.tools.promote", code=1)
    assert "the tracking store has no run of this model; run `make sync`" in out
    assert "nobody: no such DVC experiment or Git revision" in project.run(
        sys.executable, "-m", "pipeline.tools.promote", "nobody", code=1
    )
    assert "unrecognized arguments: two" in project.run(
        sys.executable, "-m", "pipeline.tools.promote", "one", "two", code=2
    )


def test_the_alias_moves_to_a_better_model_only(promoted):
    first = champion(promoted)
    client = MlflowClient(f"sqlite:///{promoted.root}/mlruns/mlflow.db")
    (run,) = client.search_runs(
        [client.get_run(first.run_id).info.experiment_id], "tags.dvc_experiment = 'faster'"
    )
    assert run.info.run_name == "faster lr=1e-2"
    card = run.data.tags["mlflow.note.content"]
    client.set_tag(run.info.run_id, "mlflow.note.content", card + "x" * 5000)
    assert "minigpt version 2 is the champion" in promoted.run(
        sys.executable, "-m", "pipeline.tools.promote", "faster"
    )
    assert (
        len(champion(promoted).description) == 5000
    )  # the most that the registry takes on PostgreSQL
    client.set_tag(run.info.run_id, "mlflow.note.content", card)
    out = promoted.run(sys.executable, "-m", "pipeline.tools.promote", "HEAD", code=1)
    assert "not promoted: the validation loss" in out
    assert champion(promoted).run_id != first.run_id


@pytest.mark.full
def test_models_of_other_splits_are_not_compared(promoted):
    promoted.run("dvc", "exp", "run", "--name", "other", "-S", "data.path=data/raw/sentences.txt")
    out = promoted.run(sys.executable, "-m", "pipeline.tools.promote", code=1)
    assert "not promoted: the champion was measured on another validation split" in out
