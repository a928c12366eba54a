"""Records, and their upload to MLflow."""

import errno
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from minigpt.common.errors import UserError
from pipeline.tools import promote
from pipeline.tracking import store
from pipeline.tracking.record import Record
from pipeline.tracking.run import Run
from pipeline.tracking.sync import sync
from pipeline.tracking.upload import upload


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


def test_half_a_line_of_metrics_is_skipped(record):
    file = record.folder / "metrics.jsonl"
    file.write_text(file.read_text() + '{"time": 1.0, "st')
    record.log_metrics({"step": 4, "train/loss": 0.5})
    assert [row["step"] for row in record.metrics()[0]] == [1, 2, 3, 4]
