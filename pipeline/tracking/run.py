"""Tracking as the stages use it: the context managers `TrainingRun` and `Run`.

A run is written to a record first, and a background thread uploads the record to MLflow every few
seconds. Tracking only observes: an out of a stage never depends on it, and a store that is down,
locked, full or slow costs one warning. `make sync` repeats an upload that failed.

One trained model is one run: evaluate and export find the record by the hash of the model file.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel

from minigpt.cli.mlflow_store import reason
from minigpt.common.config import NO_MODEL, Params
from minigpt.common.files import file_digest
from minigpt.data.token_files import Tokens
from minigpt.tokenizer import Tokenizer
from minigpt.training.train import Metrics, Trainer
from pipeline.common import paths
from pipeline.tracking import datasets, lineage, reports, store
from pipeline.tracking.history import CURVES, Snapshot, find_or_restore, restore_evaluation
from pipeline.tracking.params import as_text, changes, flatten, run_name
from pipeline.tracking.record import Record, records
from pipeline.tracking.upload import upload

log = logging.getLogger(__name__)
UPLOAD_INTERVAL = 10.0  # seconds; one request for many metrics, since each costs milliseconds
RETRY_INTERVAL = 120.0  # seconds; an attempt at a locked store takes twenty
START_TIMEOUT = 5.0  # seconds that a stage waits for the first upload
END_TIMEOUT = 60.0  # seconds that a stage waits for the last upload
LOCK_TIMEOUT = 30.0  # seconds; only one process at a time writes a record
SAMPLE_TOKENS = 80  # length of the text at each validation, without a prompt and with seed 0
SYSTEM_METRIC = "system/cpu_utilization_percentage"
SUMMED = ("wall_seconds", "cpu_seconds")  # over all processes of an interrupted training


class Run:
    """The run that made the current model; its record, and the thread that uploads the record.

    A model whose training was not tracked here gets a record of what DVC and Git know.
    """

    record: Record

    def __init__(self) -> None:
        self._interval = UPLOAD_INTERVAL
        self._warned = False
        self._uploaded = False
        self._first_attempt = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._upload_regularly, daemon=True)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turn any failure of tracking into one warning, and let the stage continue."""
        try:
            yield
        except Exception as error:
            if not self._warned:
                log.warning("tracking failed (%s)", reason(error))
            self._warned = True

    def __enter__(self) -> Self:
        with self.guard():
            record = self._open()
            record.lock.acquire(timeout=LOCK_TIMEOUT)
            record.update("run", {"status": "RUNNING"})
            self.record = record
            self._thread.start()
            # while a training runs, the import of MLflow would take three times as long
            self._first_attempt.wait(START_TIMEOUT)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Set the final status and upload what is left."""
        killed = isinstance(error, SystemExit | KeyboardInterrupt)
        with self.guard():
            try:
                self.record.end("FINISHED" if error is None else "KILLED" if killed else "FAILED")
            finally:
                self._ending.set()
                self._thread.join(END_TIMEOUT)
                if not self._thread.is_alive():  # otherwise the end of the process releases it
                    self.record.lock.release()
            if not self._uploaded:
                log.warning("the run is recorded, but not uploaded; `make sync` repeats the upload")

    def _open(self) -> Record:
        return find_or_restore(Snapshot())

    def report(self, stage: str, config: BaseModel, files: list[Path]) -> None:
        """Log the files that a stage made with `config`; write the model card."""
        with self.guard():
            texts = {file: file.read_text("utf-8") for file in files if file != paths.ONNX_MODEL}
            reports.add_stage(self.record, stage, flatten({stage: config.model_dump()}), texts)
            if paths.ONNX_MODEL in files:
                self.record.add_onnx_model(paths.ONNX_MODEL)

    def _upload_regularly(self) -> None:
        while not self._ending.is_set():
            self._upload()
            self._first_attempt.set()
            self._ending.wait(self._interval if self._uploaded else RETRY_INTERVAL)
        self._upload()

    def _upload(self) -> None:
        self._uploaded = False
        with self.guard():
            upload(self.record)
            self._uploaded = True


class TrainingRun(Run):
    """The run of a training: curves, samples and costs. A resumed training continues its run."""

    def __init__(
        self, trainer: Trainer, params: Params, tokenizer: Tokenizer, tokens: Tokens
    ) -> None:
        super().__init__()
        self._trainer, self._params = trainer, params
        self._tokenizer, self._tokens = tokenizer, tokens
        self._clock, self._clock_tokens = time.monotonic(), float(trainer.progress.tokens)
        self._monitor: Any = None

    def _open(self) -> Record:
        """Continue the record of an interrupted training, or make one."""
        assert self._trainer.resume is not None
        self._flops_per_token = lineage.flops_per_token(self._trainer.model)
        training = self._trainer.resume.folder.name
        interrupted = [record for record in records() if record.is_interrupted(training)]
        record = interrupted[-1] if interrupted else self._create(training)
        record.update("tags", lineage.origin())  # of this process
        rows = record.metrics()[0]
        self._last_steps = {name: row["step"] for row in rows for name in row}
        self._earlier = record.latest_metrics()
        for metrics in self._trainer.progress.history:
            self._log(record, metrics)
        return record

    def _create(self, training: str) -> Record:
        params, origin = flatten(self._params.model_dump()), lineage.origin()
        changed = changes(params, origin.get("dvc_baseline", "HEAD"))
        record = Record.create(run_name(origin.get("dvc_experiment", ""), changed), params)
        record.update("changes", as_text(changed))
        record.update("run", {"training": training})
        record.update("tags", lineage.machine())
        if (base := self._params.train.init_from) != NO_MODEL:
            record.update("tags", {"init_from_md5": file_digest(Path(base), "md5")})
        record.update("datasets", datasets.describe(self._params.data.path, self._tokens))
        record.log_metrics({"parameters": self._trainer.model.num_parameters})
        return record

    def log(self, metrics: Metrics) -> None:
        """Log the metrics of one step, and at a validation a text that the model generates."""
        with self.guard():
            if "train/loss" in metrics:
                tokens = metrics["tokens"] - self._clock_tokens
                speed = tokens / (time.monotonic() - self._clock)
                metrics = {**metrics, "tokens_per_second": speed, **self._costs()}
            self._log(self.record, metrics)
            if "val/loss" in metrics:
                self._sample(int(metrics["step"]))
        # validations and samples do not count for the speed of training
        self._clock, self._clock_tokens = time.monotonic(), metrics["tokens"]

    def _costs(self) -> Metrics:
        costs = lineage.costs()
        return costs | {name: costs[name] + self._earlier.get(name, 0.0) for name in SUMMED}

    def _log(self, record: Record, metrics: Metrics) -> None:
        """Log the metrics that have no value at this step or a later one.

        MLflow draws a curve by tokens only where a step has one value of each metric.
        """
        step = metrics["step"]
        metrics = {**metrics, "flops": metrics["tokens"] * self._flops_per_token}
        new = {name: metrics[name] for name in metrics if self._last_steps.get(name, -1) < step}
        self._last_steps |= dict.fromkeys(new, step)
        if new:
            record.log_metrics({**new, "step": step})

    def _sample(self, step: int) -> None:
        from minigpt.generation.engine import generate
        from minigpt.generation.torch_backend import TorchBackend

        model = self._trainer.model
        model.eval()
        try:
            text = "".join(generate(TorchBackend(model, self._tokenizer), "", SAMPLE_TOKENS))
            reports.add_sample(self.record, step, text)
        finally:
            model.train()

    def finish(self, held_out: bool) -> None:
        """Log the reports and the hash of the model; add the evaluation of an equal model."""
        with self.guard():
            paths.MODEL_CARD.unlink(missing_ok=True)  # of an earlier model
            tags = {f"model_{name}": file_digest(paths.MODEL, name) for name in ("md5", "sha256")}
            self.record.update("tags", {**tags, "held_out": str(held_out).lower()})
            reports.add_reports(self.record, {file: file.read_text() for file in CURVES})
            reports.add_card(self.record)
            # the working tree may have the reports of this very model
            restore_evaluation(self.record, Snapshot())

    def _upload(self) -> None:
        if self._first_attempt.is_set():  # then MLflow is imported
            with self.guard():
                self._log_system_metrics()
        super()._upload()

    def _log_system_metrics(self) -> None:
        self._monitor = self._monitor or store.system_monitor()
        self._interval = self._monitor.sampling_interval
        self._monitor.collect_metrics()
        values = self._monitor.aggregate_metrics()
        for monitor in self._monitor.monitors:
            monitor.clear_metrics()
        step = self._last_steps.get(SYSTEM_METRIC, -1) + 1
        self._last_steps[SYSTEM_METRIC] = step
        system = {f"system/{name}": value for name, value in values.items()}
        self.record.log_metrics({"step": step, **system})
