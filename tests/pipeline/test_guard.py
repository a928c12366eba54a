"""Failures inside of tracking: one warning, and the stage goes on."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from conftest import PARAMS, build_model

from minigpt.training.train import Progress
from pipeline.tracking import lineage
from pipeline.tracking.run import TrainingRun


@pytest.fixture
def new_run(tmp_path, monkeypatch, tokenizer) -> Callable[[], TrainingRun]:
    """Return a function that makes the run of a training in a folder without any files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.tracking.run.upload", lambda record: True)
    monkeypatch.setattr("pipeline.tracking.store.system_monitor", None)
    resume = SimpleNamespace(folder=tmp_path / "training")
    trainer = SimpleNamespace(model=build_model(), progress=Progress(), resume=resume)
    tokens = SimpleNamespace(sha256=lambda: "0" * 64, info={})
    return lambda: TrainingRun(trainer, PARAMS, tokenizer, tokens)


@pytest.mark.parametrize(
    "action",
    [
        "pipeline.tracking.lineage.flops_per_token",
        "pipeline.tracking.lineage.machine",
        "pipeline.tracking.lineage.costs",
        "pipeline.tracking.record.Record.create",
        "pipeline.tracking.record.Record.log_metrics",
        "pipeline.tracking.record.Record.end",
        "pipeline.tracking.reports.add_sample",
        "pipeline.tracking.run.upload",
        "pathlib.Path.unlink",
    ],
)
def test_a_failure_costs_one_warning(new_run, monkeypatch, caplog, action):
    def fail(*arguments, **options):
        raise PermissionError("not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(action, fail)
        with new_run() as run:
            run.log({"step": 5, "tokens": 160.0, "train/loss": 3.0, "val/loss": 3.0})
            run.finish(held_out=True)  # there is no model either
    assert caplog.text.count("tracking failed") == 1


def test_a_slow_upload_does_not_delay_the_end(new_run, monkeypatch, caplog):
    stuck = threading.Event()
    monkeypatch.setattr("pipeline.tracking.run.upload", lambda record: stuck.wait())
    monkeypatch.setattr("pipeline.tracking.run.START_TIMEOUT", 0.1)
    monkeypatch.setattr("pipeline.tracking.run.END_TIMEOUT", 0.1)
    start = time.monotonic()
    with new_run() as run:
        pass
    assert time.monotonic() - start < 10
    assert run.record.info["status"] == "FINISHED"
    assert "recorded, but not uploaded; `make sync` repeats the upload" in caplog.text
    stuck.set()


def test_a_package_of_another_name_is_found(monkeypatch):
    def version(name: str) -> str:
        if name != "onnxruntime-gpu":
            raise lineage.PackageNotFoundError(name)
        return "1.23.0"

    monkeypatch.setattr(lineage, "version", version)
    monkeypatch.setattr(
        lineage, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime-gpu"]}
    )
    assert lineage.installed("onnxruntime") == ("onnxruntime-gpu", "1.23.0")
    assert lineage.installed("torch") == ("torch", "none")
