"""Records, and their upload to MLflow."""

import errno
import json
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import build_model, model_metadata

from minigpt.common.errors import UserError
from minigpt.data.token_files import SplitInfo
from minigpt.export.onnx_graph import to_onnx
from minigpt.tokenizer import CharTokenizer
from pipeline.tools import promote
from pipeline.tracking import datasets, store
from pipeline.tracking.record import Record
from pipeline.tracking.run import Run
from pipeline.tracking.sync import sync
from pipeline.tracking.upload import upload

# MLflow itself warns when it is imported and when it saves a model
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a client of an empty store in a folder that is the project's root."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(root)
        store.mlflow.cache_clear()
        yield store.client()
    store.mlflow.cache_clear()


@pytest.fixture
def record(client: Any) -> Record:
    record = Record.create("a run", {"model.d_model": 32, "evaluate.seed": 0})
    record.update("tags", {"color": "blue"})
    for step in (1, 2, 3):
        record.log_metrics({"step": step, "train/loss": 4.0 - step})
    record.write_artifact("reports/samples.md", "# Samples\n")
    return record


def tracked(record: Record) -> Any:
    return store.find(f"tags.record = '{record.id}'")


def steps(client: Any, record: Record) -> list[int]:
    history = client.get_metric_history(tracked(record).info.run_id, "train/loss")
    return [metric.step for metric in history]


def test_an_upload_makes_mlflow_equal_to_the_record(client, record):
    record.end("FINISHED")
    upload(record)
    run = tracked(record)
    assert run.info.run_name == "a run"
    assert run.info.status == "FINISHED"
    assert run.info.end_time == int(record.info["end_time"] * 1000)
    assert run.data.params == {"model.d_model": "32"}
    assert run.data.tags["color"] == "blue"
    assert steps(client, record) == [1, 2, 3]
    (file,) = client.list_artifacts(run.info.run_id, "reports")
    assert file.path == "reports/samples.md"


def test_a_second_upload_changes_nothing(client, record):
    record.end("FINISHED")
    assert upload(record)
    before = tracked(record)
    assert not upload(record)
    after = tracked(record)
    assert after.to_dictionary() == before.to_dictionary()
    assert steps(client, record) == [1, 2, 3]


def test_a_lost_uploads_file_logs_nothing_twice(client, record):
    upload(record)
    (record.folder / ".uploads.json").unlink()
    upload(record)
    assert steps(client, record) == [1, 2, 3]


@pytest.mark.parametrize("request_name", ["log_batch", "log_artifact", "set_terminated"])
def test_sync_completes_an_upload_that_failed(client, record, monkeypatch, request_name):
    record.end("FINISHED")

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(f"mlflow.MlflowClient.{request_name}", fail)
        with pytest.raises(ConnectionError):
            upload(record)
    assert tracked(record).info.status == "RUNNING"
    assert "uploaded: a run" in list(sync())
    assert tracked(record).info.status == "FINISHED"
    assert steps(client, record) == [1, 2, 3]


def test_sync_closes_the_run_of_a_dead_process(record):
    upload(record)
    list(sync())
    run = tracked(record)
    assert run.info.status == "KILLED"
    assert run.info.end_time == int(max(row["time"] for row in record.metrics()[0]) * 1000)


def test_sync_closes_a_run_whose_end_found_a_full_disk(record, monkeypatch, caplog):
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Run, "_open", lambda run: record)
    with monkeypatch.context() as patch, Run():
        patch.setattr(Record, "end", fail)
    assert caplog.text.count("tracking failed") == 1
    assert record.info["status"] == tracked(record).info.status == "RUNNING"
    list(sync())
    assert tracked(record).info.status == "KILLED"


def test_sync_leaves_the_run_of_a_live_process_open(record):
    upload(record)
    with record.lock:
        list(sync())
    assert record.info["status"] == tracked(record).info.status == "RUNNING"


def test_a_run_that_was_closed_can_be_continued(record):
    record.end("KILLED")
    upload(record)
    record.update("run", {"status": "RUNNING"})
    upload(record)
    assert tracked(record).info.status == "RUNNING"


def test_a_lost_run_is_made_again(client, record):
    upload(record)
    client.delete_run(tracked(record).info.run_id)
    upload(record)
    assert steps(client, record) == [1, 2, 3]
    assert client.list_artifacts(tracked(record).info.run_id, "reports")


def test_a_deleted_experiment_names_the_command_that_restores_it(client, record):
    client.delete_experiment(store.experiment_id())
    store.mlflow.cache_clear()
    with pytest.raises(UserError, match=r"sqlite:///.* mlflow experiments restore") as error:
        upload(record)
    command = shlex.split(str(error.value).split("`")[1])
    subprocess.run(["env", *command], check=True, capture_output=True)
    assert upload(record)


def test_variables_that_name_another_run_are_ignored(record, monkeypatch, caplog):
    upload(record)
    other = tracked(record).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", other)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    store.mlflow.cache_clear()
    second = Record.create("another run", {})
    upload(second)
    assert tracked(second).info.run_id != other
    assert caplog.text.count("MLFLOW_RUN_ID, MLFLOW_EXPERIMENT_ID: ignored") == 1


def test_promotions_wait_for_each_other(client, monkeypatch):
    events = []

    def decide(which: str) -> str:
        events.append("look")
        time.sleep(0.1)
        events.append("write")
        return which

    monkeypatch.setattr(promote, "promote", decide)
    monkeypatch.setattr("sys.argv", ["promote"])
    threads = [threading.Thread(target=promote.main) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert events == ["look", "write"] * 2


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = CharTokenizer()
    tokenizer.build_vocab(["Once upon a time"])
    model = build_model(tokenizer.vocab_size, d_model=16, num_heads=2, num_layers=1, d_ff=16)
    file = tmp_path_factory.mktemp("model") / "minigpt.onnx"
    file.write_bytes(to_onnx(model.eval(), model_metadata(model, tokenizer)))
    return file


def trained(name: str, losses: list[float], onnx_file: Path) -> Record:
    """Return the record of a training whose last loss is that of the evaluation."""
    record = Record.create(name, {"data.path": "data/raw/tales.txt"})
    record.update("tags", {"held_out": "true", "validation_tokens": "0123"})
    record.log_metrics({"parameters": 100.0, "system/cpu_utilization_percentage": 5.0})
    for step, loss in enumerate(losses):
        record.log_metrics({"step": step, "val/loss": loss, "train/loss": loss})
    record.log_metrics({"evaluation/loss": min(losses), "evaluation/baseline_loss/bigram": 2.0})
    record.log_metrics({"export/max_logit_difference": 1e-6})
    record.add_onnx_model(onnx_file)
    record.end("FINISHED")
    return record


def models(record: Record) -> list[Any]:
    source = f"source_run_id = '{tracked(record).info.run_id}'"
    return store.client().search_logged_models([store.experiment_id()], source)


def test_the_best_model_is_found_by_its_evaluation(onnx_file):
    good, best = trained("good", [1.5], onnx_file), trained("best lr=1e-3", [3.0, 1.0], onnx_file)
    for record in (best, good):
        upload(record)
    ascending = {"field_name": "metrics.evaluation/loss", "ascending": True}
    found = store.mlflow().search_logged_models(
        experiment_ids=[store.experiment_id()],
        datasets=[{"dataset_name": "tales-val"}],
        order_by=[{**ascending, "dataset_name": "tales-val"}],
        output_format="list",
    )
    assert [model.name for model in found] == ["best_lr=1e-3", "good"]
    assert found[0].source_run_id == tracked(best).info.run_id
    assert found[0].model_type == "causal-language-model"
    assert {
        metric.key: (metric.value, metric.step, metric.dataset_name, metric.dataset_digest)
        for metric in found[0].metrics
    } == {
        "val/loss": (1.0, 1, "tales-val", "0123"),
        "evaluation/loss": (1.0, 0, "tales-val", "0123"),
        "export/max_logit_difference": (1e-6, 0, None, None),
    }


def test_a_model_is_logged_once(client, onnx_file, monkeypatch):
    record = trained("once", [2.0, 1.5], onnx_file)

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_model_artifacts", fail)
        with pytest.raises(ConnectionError):
            upload(record)
    upload(record)
    (before,) = models(record)
    assert before.status == "READY"
    record.add_onnx_model(onnx_file)
    (record.folder / ".uploads.json").unlink()
    upload(record)
    (after,) = models(record)
    assert after.to_dictionary() == before.to_dictionary()
    assert len(tracked(record).outputs.model_outputs) == 1
    history = client.get_metric_history(tracked(record).info.run_id, "evaluation/loss")
    assert len(history) == 1


def test_a_later_evaluation_reaches_the_model(onnx_file):
    record = trained("again", [2.0], onnx_file)
    upload(record)
    record.log_metrics({"evaluation/loss": 1.9})
    upload(record)
    (model,) = models(record)
    values = [metric.value for metric in model.metrics if metric.key == "evaluation/loss"]
    assert values[-1] == 1.9


def test_both_splits_are_datasets_with_counts(client, record):
    tokens = SimpleNamespace(
        info={
            "train": SplitInfo(90, 900, 720, 720, 1, "…"),
            "val": SplitInfo(10, 100, 80, 80, 0, "…"),
        },
        sha256=lambda splits: splits[0] * 9,
    )
    record.update("datasets", datasets.describe("data/raw/tales.txt", tokens))
    upload(record)
    training, validation = tracked(record).inputs.dataset_inputs
    assert [training.tags[0].value, validation.tags[0].value] == ["training", "validation"]
    assert validation.dataset.name == "tales-val"
    assert validation.dataset.digest == "valvalvalvalvalv"
    assert json.loads(validation.dataset.profile)["documents"] == 10
    assert "token_id" in validation.dataset.schema
    assert json.loads(validation.dataset.source)["uri"] == "data/raw/tales.txt"


def test_a_record_of_an_older_version_is_uploaded(record):
    record.update("dataset", {"path": "data/raw/tales.txt", "digest": "677e"})
    upload(record)
    (dataset,) = tracked(record).inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("tales.txt", "677e")


def test_half_a_line_of_metrics_is_skipped(record):
    file = record.folder / "metrics.jsonl"
    file.write_text(file.read_text() + '{"time": 1.0, "st')
    record.log_metrics({"step": 4, "train/loss": 0.5})
    assert [row["step"] for row in record.metrics()[0]] == [1, 2, 3, 4]
