"""The pipeline as a user runs it: DVC in a separate Git repository, with small parameters."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tokenizers
from conftest import ROOT, Project, checkpoints, runs, store, wait_for

from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.torch_backend import TorchBackend


def hashes(project: Project, stage: str) -> dict[str, str]:
    """Content hashes of the outs of a stage, from dvc.lock."""
    from ruamel.yaml import YAML

    lock = YAML(typ="safe", pure=True).load(project.root / "dvc.lock")
    return {out["path"]: out["md5"] for out in lock["stages"][stage]["outs"]}


def test_the_pipeline_writes_all_reports(reproduced):
    root = reproduced.root
    evaluation = json.loads((root / "reports/evaluation.json").read_text())
    details = json.loads((root / "reports/evaluation_details.json").read_text())
    validation = pd.read_csv(root / "reports/validation.csv")
    baseline = pd.read_csv(root / "reports/baselines.csv", index_col="model")["loss"]
    assert baseline["uniform"] > baseline["unigram"] > baseline["bigram"] > baseline["5-gram"] > 0
    assert evaluation["loss"] < baseline["uniform"]
    # the training may validate in bfloat16, the evaluation does not
    best = validation.loc[validation["val/loss"].idxmin()]
    assert evaluation["loss"] == pytest.approx(best["val/loss"], abs=2e-3)
    assert evaluation["bits_per_char"] == pytest.approx(best["val/bits_per_char"], abs=3e-3)
    assert details["held_out"]
    assert json.loads((root / "reports/export.json").read_text())["max_logit_difference"] < 1e-4

    characters = pd.read_csv(root / "reports/characters.csv")
    assert characters["share"].sum() == pytest.approx(1, abs=1e-3)
    documents = pd.read_parquet(root / "data/documents.parquet")
    assert set(documents["split"]) == {"train", "val"}
    accuracy = pd.read_csv(root / "reports/accuracy.csv")
    assert {"lowercase", "uppercase", "space", "punctuation"} <= set(accuracy["class"])
    assert "## `Once upon a time`" in (root / "reports/samples.md").read_text()

    lineage = OnnxBackend(root / "models/minigpt.onnx").metadata["lineage"]
    assert set(lineage) == {"data_sha256", "code_sha256"}
    assert str(root).encode() not in (root / "models/minigpt.onnx").read_bytes()


def test_a_second_repro_reruns_nothing(reproduced):
    assert "Running stage" not in reproduced.run("dvc", "repro")
    assert reproduced.run("git", "status", "--porcelain") == ""


@pytest.fixture
def tracked_run(reproduced):
    (run,) = runs(reproduced)
    return run


def history(project: Project, run, metric: str) -> list[tuple[int, float]]:
    """Return step and value of each point of a curve."""
    points = store(project)[0].get_metric_history(run.info.run_id, metric)
    return [(point.step, point.value) for point in points]


def test_the_project_has_a_store_of_its_own(reproduced, tracked_run):
    _, experiment = store(reproduced)
    assert experiment.artifact_location == (reproduced.root / "mlruns/artifacts").as_uri()
    assert tracked_run.info.experiment_id == experiment.experiment_id


def test_one_run_holds_the_metrics_of_all_stages(tracked_run):
    training = {"train/loss", "val/loss", "val/bits_per_char", "tokens_per_second"}
    training |= {"learning_rate", "gradient_norm"}
    reading = {"evaluation/loss", "evaluation/baseline_loss/bigram", "export/max_logit_difference"}
    assert training | reading <= tracked_run.data.metrics.keys()
    assert tracked_run.info.status == "FINISHED"


def test_a_curve_has_one_value_for_each_logged_step(reproduced, tracked_run):
    steps = [5, 10, 15, 20, 25, 30]
    assert [step for step, _ in history(reproduced, tracked_run, "train/loss")] == steps
    tokens = history(reproduced, tracked_run, "tokens")
    assert tokens == [(step, step * 4 * 32) for step in steps]


def test_a_run_has_the_costs_of_training(reproduced, tracked_run):
    metrics = tracked_run.data.metrics
    metadata = OnnxBackend(reproduced.root / "models/minigpt.onnx").metadata
    assert metrics["parameters"] == metadata["parameters"]
    assert metrics["tokens"] == 30 * 4 * 32
    assert metrics["flops"] > 6 * metrics["tokens"] * 0.8 * metrics["parameters"]
    assert 0 < metrics["wall_seconds"] < 600
    assert {"cpu_seconds", "peak_memory_mib"} <= metrics.keys()


def test_tags_name_the_origin_of_a_run(tracked_run):
    origin = {"git_commit", "git_dirty", "model_sha256", "cpu", "threads", "torch", "python"}
    assert origin <= tracked_run.data.tags.keys()
    assert tracked_run.info.run_name == "defaults"
    names = [dataset.dataset.name for dataset in tracked_run.inputs.dataset_inputs]
    assert sorted(names) == ["tales-train", "tales-val"]


def test_params_are_those_that_determine_the_model(tracked_run):
    params, tags = tracked_run.data.params, tracked_run.data.tags
    assert params["train.learning_rate"] == "0.007"
    assert not [name for name in params if name.startswith(("evaluate.", "export."))]
    assert tags["evaluate.temperature"] == "0.8"


def test_a_run_has_reports_as_artifacts(reproduced, tracked_run):
    client, _ = store(reproduced)
    files = {
        file.path
        for folder in ("", "reports", "figures")
        for file in client.list_artifacts(tracked_run.info.run_id, folder)
    }
    assert {"samples.json", "model_card.md", "reports/training.csv", "reports/samples.md"} <= files
    drawn = {"loss", "learning_rate", "attention", "positional_encoding", "mistakes"}
    assert {f"figures/{name}.png" for name in drawn} <= files


def test_the_model_card_describes_the_run(reproduced, tracked_run):
    card = (reproduced.root / "reports/model_card.md").read_text()
    parts = ["# defaults", "generate --model", "that differ", "<details", "| perplexity | "]
    assert sorted(parts, key=card.index) == parts
    description = tracked_run.data.tags["mlflow.note.content"]  # under the name, and cannot fold
    assert card.startswith(f"# defaults\n\n{description}<details")
    for dataset in tracked_run.inputs.dataset_inputs:
        assert dataset.dataset.digest in card
    for words in ("CC0", "of a bigram model", tracked_run.data.tags["git_commit"]):
        assert words in card
    assert "| export.tolerance | 0.0001 |" in card
    model = (reproduced.root / "models/minigpt.safetensors").read_bytes()
    assert f"The model file has the SHA-256 `{hashlib.sha256(model).hexdigest()}`" in card
    assert (reproduced.root / "reports/samples.md").read_text() in card
    assert "$" not in card.partition("# Samples")[0]


def test_both_model_files_have_a_draft_table(reproduced):
    assert OnnxBackend(reproduced.root / "models/minigpt.onnx").ngram_table
    assert TorchBackend.load(reproduced.root / "models/minigpt.safetensors").ngram_table


def test_the_tracked_model_is_the_exported_file(reproduced, tracked_run, tmp_path_factory):
    client, _ = store(reproduced)
    (model,) = client.search_logged_models([tracked_run.info.experiment_id])
    assert model.source_run_id == tracked_run.info.run_id
    folder = Path(model.artifact_location.removeprefix("file://"))
    (logged,) = folder.rglob("*.onnx")
    assert logged.read_bytes() == (reproduced.root / "models/minigpt.onnx").read_bytes()
    assert not list(folder.rglob("*.pkl"))
    assert not list(folder.rglob("training"))  # the code is that of the served model only
    code = f"""
import mlflow
model, options = mlflow.pyfunc.load_model({str(folder)!r}), {{"max_new_tokens": 20}}
texts = model.predict([{{"text": "The "}}, {{"text": "A"}}], options)["text"].tolist()
print(texts, "".join(model.predict_stream({{"text": "A"}}, options)) == texts[1])
print(mlflow.onnx.load_model({str(folder)!r}).graph.name)
"""
    # outside of the project, where only the stored code can be imported
    isolated = tmp_path_factory.mktemp("elsewhere")
    environment = {name: text for name, text in reproduced.env.items() if name != "PYTHONPATH"}
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=isolated,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    from minigpt.generation.engine import generate

    backend = OnnxBackend(reproduced.root / "models/minigpt.onnx")
    expected = ["".join(generate(backend, prompt, 20)) for prompt in ("The ", "A")]
    assert f"{expected} True" in out


def test_an_edit_reruns_only_what_depends_on_it(project):
    def would_run() -> set[str]:
        return set(json.loads(project.run("dvc", "status", "--json")))

    assert would_run() == set()
    for name in ("minigpt/cli/app.py", "pipeline/tracking/store.py", "minigpt/cli/bench.py"):
        (project.root / name).write_text((project.root / name).read_text() + "\n# edited\n")
    assert would_run() == set()
    (project.root / "minigpt/generation/sampling.py").write_text(
        (ROOT / "minigpt/generation/sampling.py").read_text() + "\n# edited\n"
    )
    assert would_run() == {"evaluate", "export"}  # training does not depend on generation
    (project.root / "minigpt/model/model.py").write_text(
        (ROOT / "minigpt/model/model.py").read_text() + "\n# edited\n"
    )
    assert would_run() == {"train", "evaluate", "export"}


@pytest.mark.slow
def test_an_equal_model_keeps_its_evaluation(project, reproduced):
    project.run("dvc", "repro", "--force", "--single-item", "train")
    project.run("dvc", "repro", "--force", "--single-item", "evaluate")
    assert hashes(project, "train") == hashes(reproduced, "train")
    project.run("dvc", "repro", "--force", "--single-item", "train")
    project.run("dvc", "repro", "--force", "--single-item", "export")
    assert hashes(project, "export") == hashes(reproduced, "export")
    first, second = runs(project)
    assert first.data.metrics["evaluation/loss"] == second.data.metrics["evaluation/loss"]
    assert "export/bytes" in second.data.metrics


def test_a_retrained_clone_has_the_committed_evaluation(project):
    project.run("dvc", "repro", "--force", "--single-item", "train")
    (run,) = runs(project)
    assert {"train/loss", "evaluation/loss"} <= set(run.data.metrics)
    assert "bits per character" in run.data.tags["mlflow.note.content"]
    assert run.data.tags["git_dirty"] == "false"


def test_sync_restores_the_run_of_the_current_model(project):
    project.run(sys.executable, "-m", "pipeline.tools.sync")
    (run,) = runs(project)
    assert run.data.tags["restored"] == "true"
    assert {"val/loss", "evaluation/loss", "export/bytes"} <= set(run.data.metrics)
    store(project)[0].delete_tag(run.info.run_id, "onnx_model")
    project.run(
        sys.executable, "-m", "pipeline.tools.sync"
    )  # once more: it is there, and is completed
    (again,) = runs(project)
    assert "onnx_model" in again.data.tags
    assert again.info.end_time == run.info.end_time


def test_runs_are_named_by_what_differs(with_experiments):
    restored, faster, apart = runs(with_experiments)
    commit = with_experiments.run("git", "rev-parse", "--short", "HEAD").strip()
    assert restored.info.run_name == f"{commit} (restored)"
    assert faster.info.run_name == "faster lr=1e-2"
    assert faster.data.tags["dvc_experiment"] == "faster"
    assert (
        faster.data.tags["dvc_baseline"]
        == faster.data.tags["git_commit"]
        == with_experiments.run("git", "rev-parse", "HEAD").strip()
    )
    assert faster.data.params["train.learning_rate"] == "0.01"
    # a temporary workspace uses its own code and the main repository's store
    assert apart.info.run_name == "apart lr=1e-2 seed=1"
    assert apart.data.tags["dvc_experiment"] == "apart"
    assert {"train/loss", "evaluation/loss", "export/bytes"} <= set(apart.data.metrics)


def test_dvc_compares_experiments(with_experiments, tmp_path):
    project = with_experiments.copy(tmp_path / "project")
    project.run("dvc", "exp", "apply", "faster")
    assert "learning_rate" in project.run("dvc", "params", "diff")
    assert "loss" in project.run("dvc", "metrics", "diff")
    table = pd.read_csv(io.StringIO(project.run("dvc", "exp", "show", "--csv")))
    assert {"faster", "apart"} <= set(table["Experiment"])
    assert {"train.learning_rate", "loss", "accuracy"} <= set(table.columns)
    wide = project.run("dvc", "exp", "show", "--only-changed", "--no-pager", COLUMNS="100")
    header = next(line.split() for line in wide.splitlines() if "Experiment" in line)
    assert header[:6] == [
        *("Experiment", "Created", "loss", "bits_per_char", "accuracy"),
        "train.learning_rate",
    ]
    assert max(map(len, wide.splitlines())) <= 100


def test_going_back_to_a_model_goes_back_to_its_run(with_experiments):
    with_experiments.run("git", "restore", ".")
    with_experiments.run("dvc", "checkout")
    with_experiments.run("dvc", "repro", "--force", "--single-item", "evaluate")
    first, *others = runs(with_experiments)
    assert len(others) == 2
    assert all(first.info.end_time > other.info.end_time for other in others)
    model = (with_experiments.root / "models/minigpt.safetensors").read_bytes()
    assert (
        hashlib.sha256(model).hexdigest()
        in (with_experiments.root / "reports/model_card.md").read_text()
    )


@pytest.mark.slow
def test_sync_restores_a_lost_store_from_git(with_experiments, tmp_path):
    project = with_experiments.copy(tmp_path / "project")
    project.run("git", "restore", ".")
    project.run("dvc", "checkout")
    out = project.run(sys.executable, "-m", "pipeline.tools.sync")
    assert out.count("restored: ") == 3
    client, _ = store(project)
    model = lambda run: run.data.tags["model_md5"]  # noqa: E731
    for before, after in zip(
        sorted(runs(with_experiments), key=model), sorted(runs(project), key=model), strict=True
    ):
        assert "(restored)" in after.info.run_name
        assert after.info.run_name.replace(" (restored)", "") in before.info.run_name
        for tag in ("model_md5", "dvc_experiment", "dvc_baseline", "validation_tokens"):
            assert after.data.tags.get(tag) == before.data.tags.get(tag)
        assert after.data.params == before.data.params
        for metric in (
            "val/loss",
            "evaluation/loss",
            "evaluation/baseline_loss/bigram",
            "export/bytes",
        ):
            assert after.data.metrics[metric] == pytest.approx(before.data.metrics[metric])
        steps = [
            metric.step for metric in client.get_metric_history(after.info.run_id, "train/loss")
        ]
        assert steps == [5, 10, 15, 20, 25, 30]
    assert "restored" not in project.run(
        sys.executable, "-m", "pipeline.tools.sync"
    )  # once more: all is there
    assert len(runs(project)) == 3
    assert "is the champion" in project.run(
        sys.executable, "-m", "pipeline.tools.promote", "faster"
    )
    command = ["minigpt-cli", "generate", "--seed", "1", "--model"]
    champion = project.run(*command, "models:/minigpt@champion")
    project.run("dvc", "exp", "apply", "faster")
    assert project.run(*command, "models/minigpt.onnx") == champion


@pytest.mark.full
def test_a_lost_exported_model_is_made_again(with_experiments, tmp_path):
    project = with_experiments.copy(tmp_path / "project")
    project.run("git", "restore", ".")
    project.run("dvc", "checkout")
    shutil.rmtree(project.root / ".dvc/cache/files")
    project.run(sys.executable, "-m", "pipeline.tools.sync")
    out = project.run(sys.executable, "-m", "pipeline.tools.promote", "apart", code=1)
    assert "lacks its evaluation or its exported model" in out
    back, again, sync = re.findall("`(.*?)`", out)
    assert sync == "make sync"
    project.run(*back.split())
    project.run(*again.split())
    project.run(sys.executable, "-m", "pipeline.tools.sync")
    assert "is the champion" in project.run(sys.executable, "-m", "pipeline.tools.promote", "apart")


def test_a_figure_that_fails_costs_a_warning(project):
    project.edit("params.yaml", "temperature: 0.8", "temperature: 0.5")
    project.edit(
        "pipeline/tracking/figures.py",
        "    table = table.head(20)",
        "    raise ValueError('a bug')  #",
    )
    out = project.run(sys.executable, "-m", "pipeline.evaluate")
    assert out.count("mistakes.png: not drawn (a bug)") == 1
    assert "tracking failed" not in out
    (run,) = runs(project)
    assert run.data.tags["evaluate.temperature"] == "0.5"
    assert "| evaluate.temperature | 0.5 |" in (project.root / "reports/model_card.md").read_text()


@pytest.mark.slow
def test_a_clone_that_pulls_the_model_restores_its_run(project, tmp_path):
    clone = Project.__new__(Project)
    clone.root, clone.env = tmp_path / "clone", project.env
    project.run("git", "clone", "--quiet", ".", str(clone.root))
    # docs/experiments.md quotes this message
    assert "No remote provided and no default remote set" in clone.run("dvc", "pull", code=1)
    project.run("dvc", "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    project.commit()
    project.run("dvc", "push", "--run-cache")
    clone.run("git", "pull", "--quiet")
    clone.run("dvc", "pull", "--run-cache")
    for name in ("minigpt.safetensors", "minigpt.onnx"):
        model = (project.root / "models" / name).read_bytes()
        assert (clone.root / "models" / name).read_bytes() == model
    assert clone.run("dvc", "status", "--json").strip() == "{}"
    clone.run("dvc", "repro", "--force", "--single-item", "evaluate")
    (run,) = runs(clone)
    assert run.data.tags["restored"] == "true"
    assert {"train/loss", "evaluation/loss"} <= set(run.data.metrics)
    assert run.data.params["train.learning_rate"] == "0.007"


@pytest.mark.full
def test_a_queue_of_two_workers(project):
    for seed in ("1", "2", "3"):
        project.run(
            "dvc", "exp", "run", "--queue", "--name", f"seed-{seed}", "-S", f"train.seed={seed}"
        )
    project.run("dvc", "queue", "start", "--jobs", "2")
    wait_for(lambda: project.run("dvc", "queue", "status").count("Success") == 3, 300)
    project.run("dvc", "queue", "stop")
    found = runs(project)
    names = [f"seed-{seed} seed={seed}" for seed in (1, 2, 3)]
    assert sorted(run.info.run_name for run in found) == names
    for run in found:
        assert run.info.status == "FINISHED"
        assert run.data.tags["dvc_experiment"] == run.info.run_name.split()[0]
        assert {"train/loss", "evaluation/loss", "export/bytes"} <= set(run.data.metrics)
    losses = {run.data.metrics["evaluation/loss"] for run in found}
    assert len(losses) == 3
    table = pd.read_csv(io.StringIO(project.run("dvc", "exp", "show", "--csv")))
    assert {"seed-1", "seed-2", "seed-3"} <= set(table["Experiment"])


@pytest.mark.slow
def test_a_corpus_without_held_out_text_is_reported(project):
    out = project.run(
        "dvc", "exp", "run", "-S", "data.path=data/raw/sentences.txt", "-S", "train.layout=padded"
    )
    assert "nothing is held out" in out
    details = json.loads((project.root / "reports/evaluation_details.json").read_text())
    assert not details["held_out"]
    vocab = json.loads((project.root / "data/vocab.json").read_text())
    assert len(vocab["characters"]) == 36


@pytest.mark.slow
def test_bpe_runs_through_the_pipeline(project):
    project.run("dvc", "exp", "run", "-S", "tokenizer.type=bpe", "-S", "tokenizer.vocab_size=300")
    assert (
        tokenizers.Tokenizer.from_file(str(project.root / "data/vocab.json")).get_vocab_size()
        == 300
    )
    assert json.loads((project.root / "data/tokens/meta.json").read_text())["dtype"] == "uint16"
    assert pd.read_csv(project.root / "reports/characters.csv")["in_vocabulary"].all()
    documents = pd.read_parquet(project.root / "data/documents.parquet")
    assert documents["tokens"].sum() < documents["characters"].sum()
    details = json.loads((project.root / "reports/evaluation_details.json").read_text())
    assert 0 < details["bits_per_byte"] < 8
    described = json.loads(project.run("minigpt-cli", "info", "--json"))["vocabulary"]
    assert described == {"type": "bpe", "size": 300, "normalization": "NFC", "lowercase": False}
    command = ["minigpt-cli", "generate", "--prompt", "The café 🦊 ", "--seed", "1", "--backend"]
    assert project.run(*command, "onnx") == project.run(*command, "torch")
    (requirements,) = project.root.glob("mlruns/artifacts/**/requirements.txt")
    assert "tokenizers==" in requirements.read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_heads: 2", "num_heads: 3", "params.yaml: model.num_heads: must divide d_model"),
        ("data/raw/tales.txt", "data/raw/none.txt", "data/raw/none.txt"),
        ("tolerance: 1e-4", "tolerance: 1e-12", "export.tolerance: the ONNX model's logits differ"),
    ],
)
def test_bad_parameters_are_one_line(project, old, new, message):
    project.edit("params.yaml", old, new)
    out = project.run("dvc", "repro", code=255)
    assert message in out
    assert "Traceback" not in out


@pytest.mark.slow
def test_a_quantized_model_is_a_second_file(project):
    assert "models/minigpt.int8.onnx" not in project.run("dvc", "stage", "list")
    out = project.run("dvc", "exp", "run", "-S", "quantize.formats=[int8]")
    assert re.findall(r"Running stage '(.*?)'", out) == ["quantize@int8"]
    quality = json.loads((project.root / "reports/int8.json").read_text())["int8"]
    assert abs(quality["quality_loss"]) < 0.005
    described = json.loads(
        project.run("minigpt-cli", "info", "--model", "models/minigpt.int8.onnx", "--json")
    )
    assert described["quantization"]["bits_per_char"] == quality["bits_per_char"]
    expected = json.loads((project.root / "reports/evaluation.json").read_text())["bits_per_char"]
    assert quality["bits_per_char"] == pytest.approx(
        expected * (1 + quality["quality_loss"]), rel=1e-4
    )
    assert runs(project)[-1].data.metrics["quantize/int8/quality_loss"] == quality["quality_loss"]

    # without int8 on the list, no file of the model before is left (by `dvc repro` it would be
    # left, and refused: see tests/cli/test_app.py)
    project.run("dvc", "exp", "run", "-S", "quantize.formats=[]", "-S", "train.seed=1")
    assert not (project.root / "models/minigpt.int8.onnx").exists()


def test_missing_packages_are_one_line(project, tmp_path):
    result = subprocess.run(
        [sys.executable, "-S", "-m", "pipeline.train"],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "lacks MiniGPT's packages; run `make setup`" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.full
def test_a_missing_compiler_is_one_line(project, tmp_path):
    project.edit("params.yaml", "compile: false", "compile: true")
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"), "CXX": "/nowhere/g++"}
    out = project.run(sys.executable, "-m", "pipeline.train", code=1, **caches)
    assert "train.compile: PyTorch cannot compile here (InvalidCxxCompiler" in out
    assert "Traceback" not in out


def test_a_crashed_training_has_status_failed(project):
    project.edit(
        "minigpt/model/loss.py", "    total, count = 0.0, 0\n", "    raise RuntimeError('a bug')\n"
    )
    out = project.run(sys.executable, "-m", "pipeline.train", code=1)
    assert "RuntimeError: a bug" in out
    (run,) = runs(project)
    assert run.info.status == "FAILED"
    assert "train/loss" in run.data.metrics  # logged before the error


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.full)]
)
@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_bytes(project, number, tmp_path):
    project.edit("params.yaml", "max_steps: 30", "max_steps: 600")
    project.edit("params.yaml", "eval_interval: 15", "eval_interval: 200")
    project.run("dvc", "repro", "train")
    expected = (project.root / "models/minigpt.safetensors").read_bytes()

    (project.root / "models/minigpt.safetensors").unlink()
    process = project.start(sys.executable, "-m", "pipeline.train")
    wait_for(lambda: checkpoints(project) or process.poll() is not None)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL), err
    assert not (project.root / "models/minigpt.safetensors").exists()
    if number == signal.SIGTERM:
        assert "`dvc repro` resumes from here" in err
        assert runs(project)[-1].info.status == "KILLED"

    out = project.run(
        sys.executable, "-m", "pipeline.train", MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="0.2"
    )
    assert re.search(r"resuming at step \d+ of an interrupted training", out)
    assert (project.root / "models/minigpt.safetensors").read_bytes() == expected
    assert not checkpoints(project)
    client, _ = store(project)
    _, second = runs(project)  # the interrupted run went on, no third one was made
    assert second.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(second.info.run_id, "train/loss")]
    assert steps == list(range(5, 601, 5))  # no hole, none twice
    seconds = [
        metric.value for metric in client.get_metric_history(second.info.run_id, "wall_seconds")
    ]
    assert seconds == sorted(seconds)  # of both processes together
    assert "system/cpu_utilization_percentage" in second.data.metrics
    samples = client.download_artifacts(second.info.run_id, "samples.json", str(tmp_path))
    assert [row[0] for row in json.loads(Path(samples).read_text())["data"]] == [200, 400, 600]


@pytest.mark.slow
def test_a_broken_store_costs_a_warning(project, reproduced):
    (project.root / "mlruns").mkdir()
    (project.root / "mlruns/mlflow.db").write_bytes(b"this is no database" * 100)
    out = project.run("dvc", "repro", "--force", "--single-item", "train")
    assert out.count("tracking failed") == out.count("not uploaded") == 1
    assert "Traceback" not in out
    assert hashes(project, "train") == hashes(reproduced, "train")
    model = (project.root / "models/minigpt.safetensors").read_bytes()
    assert hashlib.sha256(model).hexdigest() in (project.root / "reports/model_card.md").read_text()
    out = project.run(sys.executable, "-m", "pipeline.tools.sync", code=1)
    assert "cannot use the tracking store" in out
    assert "Traceback" not in out


@pytest.mark.full
def test_a_locked_store_gets_the_run_later(project, reproduced):
    project.run(sys.executable, "-c", "from pipeline.tracking import store; store.mlflow()")
    with sqlite3.connect(project.root / "mlruns/mlflow.db", isolation_level=None) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        out = project.run("dvc", "repro", "--force", "--single-item", "train")
        connection.execute("ROLLBACK")
    connection.close()
    assert out.count("tracking failed") == 1
    assert "Traceback" not in out
    assert hashes(project, "train") == hashes(reproduced, "train")
    assert not runs(project)
    project.run(sys.executable, "-m", "pipeline.tools.sync")
    (run,) = runs(project)
    client, _ = store(project)
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")] == [
        5,
        10,
        15,
        20,
        25,
        30,
    ]
    assert run.data.params["data.path"] == "data/raw/tales.txt"


@pytest.mark.slow
def test_an_interrupted_training_is_uploaded_later(project):
    project.edit("params.yaml", "max_steps: 30", "max_steps: 6000")
    (project.root / "mlruns").write_text("where the folder should be")
    process = project.start(sys.executable, "-m", "pipeline.train")
    wait_for(lambda: checkpoints(project) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "not uploaded; `make sync` repeats the upload" in err
    assert "Traceback" not in err
    (project.root / "mlruns").unlink()
    project.run(sys.executable, "-m", "pipeline.tools.sync")
    (run,) = [run for run in runs(project) if "restored" not in run.data.tags]
    assert run.info.status == "KILLED"
    assert "parameters" in run.data.metrics


@pytest.mark.parametrize("script", ["train", "tools.sweep"])
def test_a_folder_that_cannot_be_made_is_one_line(project, script):
    shutil.rmtree(project.root / ".minigpt")
    (project.root / ".minigpt").write_text("where the folder should be")
    out = project.run(sys.executable, "-m", f"pipeline.{script}", code=1)
    assert re.search(r"/\.minigpt\S*: cannot be used \((File exists|Not a directory)\)", out)
    assert out.count("\n") == 1


def test_three_processes_open_a_new_store_at_once(project):
    code = (
        "from pipeline.tracking.store import mlflow; mlflow().MlflowClient().search_experiments()"
    )
    processes = [project.start(sys.executable, "-c", code) for _ in range(3)]
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    with sqlite3.connect(project.root / "mlruns/mlflow.db") as connection:
        names = connection.execute("select name from experiments").fetchall()
    assert sorted(names) == [("Default",), ("minigpt",)]
    assert os.readlink(project.root / "mlflow.db") == "mlruns/mlflow.db"


def test_the_summary_ends_make_repro(reproduced):
    out = reproduced.run(sys.executable, "-m", "pipeline.tools.summary")
    for word in (
        "validation loss",
        "perplexity",
        "bits per char",
        "models/minigpt.onnx",
        "minigpt-cli generate",
    ):
        assert word in out
