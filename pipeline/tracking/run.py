"""Tracking as the stages use it: `training_run` and `model_run`.

A run is written to a record first, and a background thread uploads the record to MLflow every few
seconds. Tracking only observes: an out of a stage never depends on it, and a store that is down,
locked, full or slow costs one warning. `make sync` repeats an upload that failed.

One trained model is one run: evaluate and export find the record by the hash of the model file.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from minigpt.common.config import Params
from minigpt.common.files import atomic_write, file_digest
from minigpt.data.token_files import Tokens
from minigpt.model.model import MiniGPT
from minigpt.tokenizer import Tokenizer
from minigpt.training.train import Metrics, Trainer
from pipeline.common import paths
from pipeline.tracking import history, lineage, reports, store
from pipeline.tracking.params import flatten, run_name
from pipeline.tracking.record import Record, find_record, open_record
from pipeline.tracking.system_metrics import SystemMetrics
from pipeline.tracking.upload import upload

log = logging.getLogger(__name__)
UPLOAD_INTERVAL = 10.0  # seconds; one request for many metrics, since each costs milliseconds
RETRY_INTERVAL = 120.0  # seconds; an attempt at a locked store takes twenty
START_TIMEOUT = 5.0  # seconds that training waits for the first upload
SAMPLE_TOKENS = 80  # length of the text at each validation, without a prompt and with seed 0
SUMMED = ("wall_seconds", "cpu_seconds")  # over all processes of an interrupted training


class Run:
    """A record, and the thread that uploads the record."""

    def __init__(self) -> None:
        self._record: Record | None = None
        self._warned = False
        self._uploaded = False
        self._first_attempt = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._upload_regularly, daemon=True)

    @property
    def record(self) -> Record:
        if self._record is None:
            raise RuntimeError("no record could be made")
        return self._record

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turn any failure of tracking into one warning: the training goes on."""
        try:
            yield
        except Exception as error:
            if not self._warned:
                log.warning("tracking failed (%s)", store.reason(error))
            self._warned = True

    def start(self, record: Record) -> None:
        """Upload `record` from now on."""
        self._record = record
        record.begin()
        self._thread.start()
        # while a training runs, the import of MLflow would take three times as long
        self._first_attempt.wait(START_TIMEOUT)

    def end(self, status: str) -> None:
        """Set the final status and upload what is left."""
        with self.guard():
            self.record.end(status)
        self._ending.set()
        if self._record is None:
            return
        self._thread.join()
        if not self._uploaded:
            log.warning("the run is recorded, but not uploaded; `make sync` repeats the upload")

    def _upload_regularly(self) -> None:
        while not self._ending.is_set():
            self._upload()
            self._first_attempt.set()
            self._ending.wait(self._interval() if self._uploaded else RETRY_INTERVAL)
        self._upload()

    def _upload(self) -> None:
        self._uploaded = False
        with self.guard():
            upload(self.record)
            self._uploaded = True

    def _interval(self) -> float:
        return UPLOAD_INTERVAL

    def report(
        self, stage: str, config: BaseModel, values: dict[str, Any], files: list[Path]
    ) -> None:
        """Log the numbers and files that a stage made with `config`; write the model card."""
        with self.guard():
            texts = {file: file.read_text(encoding="utf-8") for file in files}
            params = flatten({stage: config.model_dump()})
            reports.add_stage(self.record, stage, params, values, texts)
            if stage == "evaluate":
                reports.add_model_figures(self.record, paths.MODEL)
            paths.MODEL_CARD.write_text(reports.add_card(self.record), encoding="utf-8")

    def onnx_model(self, path: Path) -> None:
        """Log the exported file as a model that maps text to text."""
        with self.guard():
            self.record.add_onnx_model(path)


class TrainingRun(Run):
    """The run of a training: curves, samples and costs."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self._flops_per_token = lineage.flops_per_token(trainer.model)
        self._costs = lineage.Costs()
        self._restart_clock(trainer.progress.tokens)
        self._last: Metrics = {}  # logged of the current step
        # already in the record of an interrupted training
        self._known_steps = {"train/loss": 0.0, "val/loss": 0.0}
        self._system_step = 0
        self._system: SystemMetrics | None = None

    def begin(self, trainer: Trainer, params: Params, tokens: Tokens, note: Path) -> None:
        """Make the record, or continue the one whose id is in `note`."""
        origin = lineage.origin()
        record = open_record(note.read_text()) if note.exists() else None
        if record is None:
            flat = flatten(params.model_dump())
            record = Record.create(run_name(flat, origin.get("dvc_baseline", "HEAD")), flat)
            tags = lineage.machine()
            if params.train.init_from is not None:
                tags["init_from_md5"] = file_digest(Path(params.train.init_from), "md5")
            record.update("tags", tags)
            dataset = {"path": params.data.path, "digest": tokens.sha256()[:16]}
            record.update("dataset", dataset)
            record.log_metrics({"parameters": trainer.model.num_parameters})
            atomic_write(note, record.id.encode())
        record.update("tags", origin)  # of this process
        self._continue(record)
        self.start(record)
        for metrics in trainer.progress.history:
            self._log(metrics)

    def _continue(self, record: Record) -> None:
        rows, _ = record.metrics()
        latest = record.latest_metrics()
        self._costs = lineage.Costs(**{name: latest.get(name, 0.0) for name in SUMMED})
        self._system_step = sum("system/cpu_utilization_percentage" in row for row in rows)
        for name in self._known_steps:
            self._known_steps[name] = max((row["step"] for row in rows if name in row), default=0.0)

    def log(self, metrics: Metrics) -> None:
        """Log the metrics of one step."""
        metrics = {**metrics, "flops": metrics["tokens"] * self._flops_per_token}
        if "train/loss" in metrics:
            speed = (metrics["tokens"] - self._clock_tokens) / (time.monotonic() - self._clock)
            metrics |= {"tokens_per_second": speed, **self._costs()}
        self._log(metrics)
        self._restart_clock(metrics["tokens"])

    def _log(self, metrics: Metrics) -> None:
        kind = "train/loss" if "train/loss" in metrics else "val/loss"
        if metrics["step"] <= self._known_steps[kind]:
            return
        # MLflow draws a curve by tokens only where a step has one value of each metric
        known = self._last if self._last.get("step") == metrics["step"] else {}
        new = {name: metrics[name] for name in metrics if name == "step" or name not in known}
        self._last = {**known, **metrics}
        with self.guard():
            self.record.log_metrics(new)

    def _restart_clock(self, tokens: float) -> None:
        """Measure the speed of training from here: validation and samples do not count."""
        self._clock, self._clock_tokens = time.monotonic(), tokens

    def sample(self, model: MiniGPT, tokenizer: Tokenizer, metrics: Metrics) -> None:
        """Log a text that the model generates at this step; prompt and seed are always the same."""
        from minigpt.generation.engine import generate
        from minigpt.generation.torch_backend import TorchBackend

        model.eval()
        text = "".join(generate(TorchBackend(model, tokenizer), "", SAMPLE_TOKENS))
        model.train()
        with self.guard():
            reports.add_sample(self.record, int(metrics["step"]), text)
        self._restart_clock(metrics["tokens"])

    def finish(self, model: Path, held_out: bool) -> None:
        """Log the reports and the hash of the model; carry over the evaluation of an equal one."""
        paths.MODEL_CARD.unlink(missing_ok=True)  # of an earlier model
        with self.guard():
            record, earlier = self.record, find_record(file_digest(model, "md5"))
            files = (paths.TRAINING, *reports.CURVES.values())
            reports.add_reports(record, {file: file.read_text() for file in files})
            reports.add_identity(record, model, held_out)
            if earlier is not None:
                reports.carry_over(record, earlier)
            # a clone may have the reports of this very model
            elif history.restore_evaluation(record, history.Snapshot()):
                reports.add_model_figures(record, model)
            paths.MODEL_CARD.write_text(reports.add_card(record), encoding="utf-8")

    def _upload(self) -> None:
        if self._first_attempt.is_set():  # then MLflow is imported
            with self.guard():
                self._system = self._system or SystemMetrics()
                self.record.log_metrics({"step": self._system_step, **self._system()})
                self._system_step += 1
        super()._upload()

    def _interval(self) -> float:
        return float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", UPLOAD_INTERVAL))


@contextlib.contextmanager
def training_run(trainer: Trainer, params: Params, tokens: Tokens) -> Iterator[TrainingRun]:
    """Track a training; a resumed one continues its run."""
    run = TrainingRun(trainer)
    assert trainer.resume is not None
    note = trainer.resume.folder / "record"
    with _ended(run):
        with run.guard():
            run.begin(trainer, params, tokens, note)
        yield run
    note.unlink(missing_ok=True)


@contextlib.contextmanager
def model_run(model: Path) -> Iterator[Run]:
    """Continue the run that made `model`; without a record, make one of what DVC and Git know."""
    run = Run()
    with _ended(run):
        with run.guard():
            record = find_record(file_digest(model, "md5"))
            run.start(record or history.record_of_model(model))
        yield run


@contextlib.contextmanager
def _ended(run: Run) -> Iterator[None]:
    """End `run`: FAILED after an exception, KILLED by a signal, else FINISHED."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (SystemExit, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        run.end(status)
