"""What the stages tell MLflow, and when. It observes, and cannot change an out.

One trained model is one run. Its id is random, so no stage passes it on: train tags its run with the
MD5 of the model file it wrote (DVC's name for it), and evaluate and export find the run by the file they read.

Tracking never stops the work, nor holds it up: a thread of its own talks to the store. Where that is absent,
locked, full or slow, one warning says so, and what could not be told is tried again. What a server did not take
by the end goes into the local store, and `python -m pipeline.tools.sync` sends it later. What no store took is in
Git and DVC all the same: that command makes from them the runs that are missing.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from minigpt.common.config import Params
from minigpt.common.files import file_digest
from minigpt.data.token_files import Tokens
from minigpt.model.model import MiniGPT
from minigpt.tokenizer import Tokenizer
from minigpt.training.train import Metrics, Trainer
from pipeline.common import paths
from pipeline.tracking import content, lineage, store
from pipeline.tracking.store import client, mlflow

log = logging.getLogger(__name__)
SEND_EVERY = 10.0  # seconds; one call for many rows, since each costs milliseconds
SAMPLE_TOKENS = (
    80  # of the text that the model writes at each validation, from nothing and with seed 0
)
BEGIN_WITHIN = 5.0  # seconds; training does not wait longer for a store that is slow
TRY_AGAIN_AFTER = 120.0  # seconds; a locked store holds each attempt up for twenty
SUMMED = ("wall_seconds", "cpu_seconds")  # over all processes of a training that was interrupted


class Run:
    """One MLflow run, told by a thread of its own, in order; what fails is tried again, and once more at the end."""

    def __init__(self) -> None:
        self.id = ""  # none yet
        self._actions: list[Callable[[], Any]] = []
        self._told = 0  # so many of them
        self._changed = threading.Condition()
        self._ending = False
        self._warned = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def tell(self, action: Callable[[], Any]) -> None:
        """Do `action` after all that was to be told before; it must be able to run twice."""
        with self._changed:
            self._actions.append(action)
            self._changed.notify()

    def wait(self, seconds: float) -> None:
        """Until all is told, or something failed; not longer than so many seconds."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._warned or self._told == len(self._actions), seconds
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ending or self._told < len(self._actions))
                if self._told == len(self._actions):
                    return
                last_attempt = self._ending
            if not self._tell_next():
                if last_attempt:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._ending, TRY_AGAIN_AFTER)

    def _tell_next(self) -> bool:
        try:
            self._actions[self._told]()
        except Exception as error:  # whatever a tracker does wrong, the model is worth more
            if not self._warned:
                log.warning(
                    "tracking failed (%s); trying again from time to time", store.reason(error)
                )
            with self._changed:
                self._warned = True
                self._changed.notify()
            return False
        with self._changed:
            self._told += 1
            self._changed.notify()
        return True

    def start(self, **kwargs: Any) -> None:
        """As `mlflow.start_run`; a run that was started already stays."""
        if not self.id:
            self.id = mlflow().start_run(**kwargs).info.run_id

    def end(self, status: str) -> None:
        """Tell what is left, and close the run."""
        self.tell(lambda: mlflow().end_run(status))
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join()
        if self._told < len(self._actions) and status == "KILLED":
            log.warning("not all was tracked; `dvc repro` goes on, and tells it then")
            return
        if self._told < len(self._actions) and not store.is_local():
            self._tell_local_store()
        if self._told < len(self._actions):
            log.warning(
                "not all was tracked; later, `python -m pipeline.tools.sync` sends what is missing"
            )

    def _tell_local_store(self) -> None:
        """Tell all of it once more, to the local store, where it waits to be sent."""
        server = os.environ["MLFLOW_TRACKING_URI"]
        tags = {"unsent_to": server, "unsent_run": self.id}
        store.use(store.local_uri())
        self._forget()
        self._actions.insert(-1, lambda: content.log_tags(self.id, tags))
        while self._told < len(self._actions):
            if not self._tell_next():
                return
        log.warning(
            "the run is in the local store; later, `python -m pipeline.tools.sync` sends it to %s",
            server,
        )

    def _forget(self) -> None:
        """Nothing is told yet."""
        self.id, self._told = "", 0

    def report(
        self, stage: str, config: BaseModel, values: dict[str, Any], files: list[Path]
    ) -> None:
        """Log the numbers and the files of a stage, made with `config`, and write the model's card anew."""
        reports = {file: file.read_text(encoding="utf-8") for file in files}
        params = lineage.flatten({stage: config.model_dump()})
        self.tell(lambda: content.log_reports(self.id, stage, params, values, reports))
        if stage == "evaluate":
            self.tell(lambda: content.log_model_figures(self.id, paths.MODEL))
        self.tell(lambda: content.write_card(self.id))

    def onnx_model(self, path: Path) -> None:
        """Log the exported file, untouched, as a model that takes text and gives text."""
        self.tell(lambda: content.log_onnx_model(self.id, path))


class TrainingRun(Run):
    """The run of a training: its curves, samples and costs."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        # of a training that goes on, what a killed process had not sent
        self._rows: list[tuple[float, Metrics]] = []
        for row in trainer.progress.history:
            content.add_row(self._rows, row)
        self._samples: dict[int, str] = {}  # by step
        self._flops_per_token = lineage.flops_per_token(trainer.model)
        self._costs = lineage.Costs()
        self._sent_at = time.monotonic()
        self._mark_time(trainer.progress.tokens)
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self._sent = 0  # so many rows
        self._sent_samples = 0
        # what a continued run has already
        self._known_step = {"train/loss": 0, "val/loss": 0}
        self._known_samples: dict[int, str] = {}
        self._spent = dict.fromkeys(SUMMED, 0.0)

    def begin(self, trainer: Trainer, params: Params, tokens: Tokens, note: Path) -> None:
        """Start the run, or go on with the one whose id `note` holds."""
        origin = lineage.origin()
        flat = lineage.flatten(params.model_dump())
        name = lineage.run_name(flat, origin.get("dvc_baseline", "HEAD"))
        tags = {**origin, **lineage.machine()}
        if params.train.init_from is not None:
            tags["init_from_md5"] = file_digest(Path(params.train.init_from), "md5")
        parameters = trainer.model.num_parameters

        def begin() -> None:
            if note.exists() and not self.id:
                self._continue(note.read_text())
            self.start(run_name=name, tags=tags, log_system_metrics=True)
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(self.id)
            content.log_tags(
                self.id, origin
            )  # of this process, where it goes on with the run of another
            content.log_params(self.id, flat)
            content.log_metrics(self.id, {"parameters": parameters})
            content.log_dataset(self.id, params.data.path, tokens)

        self.tell(begin)
        # MLflow is imported and opened there: beside training it would take three times as long, and hold that up
        self.wait(BEGIN_WITHIN)

    def _continue(self, run_id: str) -> None:
        """Take up an interrupted run, if the store still has it."""
        try:
            run = client().get_run(run_id)
        except mlflow().exceptions.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return
            raise
        if run.info.lifecycle_stage == "deleted":
            return
        self._spent = {name: run.data.metrics.get(name, 0.0) for name in SUMMED}
        for name in self._known_step:
            history = client().get_metric_history(run_id, name)
            self._known_step[name] = max((metric.step for metric in history), default=0)
        self._known_samples = content.logged_samples(run_id)
        self.start(run_id=run_id, log_system_metrics=True)

    def log(self, row: Metrics) -> None:
        """Take the metrics of one step; every few seconds they are sent together."""
        row = {**row, "flops": row["tokens"] * self._flops_per_token}
        if "train/loss" in row:
            speed = (row["tokens"] - self._mark_tokens) / (time.monotonic() - self._mark)
            row |= {"tokens_per_second": speed, **self._costs()}
        content.add_row(self._rows, row)
        if time.monotonic() - self._sent_at > SEND_EVERY:
            self._sent_at = time.monotonic()
            self.tell(self._send)
        self._mark_time(row["tokens"])

    def _mark_time(self, tokens: float) -> None:
        """Training goes on from here: validation and samples are not its time."""
        self._mark, self._mark_tokens = time.monotonic(), tokens

    def sample(self, model: MiniGPT, tokenizer: Tokenizer, row: Metrics) -> None:
        """Take a text that the model writes at this step; the prompt and the seed are always the same."""
        from minigpt.generation.engine import generate
        from minigpt.generation.torch_backend import TorchBackend

        model.eval()
        text = "".join(generate(TorchBackend(model, tokenizer), "", SAMPLE_TOKENS))
        model.train()
        self._samples = {
            **self._samples,
            int(row["step"]): text,
        }  # a new one: the other thread reads the old
        self._mark_time(row["tokens"])

    def _send(self) -> None:
        end = len(self._rows)  # the other thread adds to them
        content.log_rows(
            self.id,
            [
                (when, self._whole(row))
                for when, row in self._rows[self._sent : end]
                if self._new(row)
            ],
        )
        self._sent = end
        samples = self._samples
        if len(samples) > self._sent_samples:
            content.log_samples(self.id, {**self._known_samples, **samples})
            self._sent_samples = len(samples)

    def _new(self, row: Metrics) -> bool:
        return row["step"] > self._known_step["train/loss" if "train/loss" in row else "val/loss"]

    def _whole(self, row: Metrics) -> Metrics:
        """With what the earlier processes of this training spent."""
        return {name: value + self._spent.get(name, 0.0) for name, value in row.items()}

    def end(self, status: str) -> None:
        self.tell(self._send)  # of a training that failed, too
        super().end(status)

    def finish(self, model: Path, held_out: bool) -> None:
        """Log the curves, and tag the run with the model it made; the figures are drawn when that is evaluated."""
        paths.MODEL_CARD.unlink(missing_ok=True)  # an earlier model's
        reports = {file: file.read_text() for file in (paths.TRAINING, *content.CURVES.values())}
        identity = content.identity(model, held_out)
        self.tell(self._send)
        self.tell(lambda: content.log_texts(self.id, reports))
        self.tell(lambda: content.carry_over(self.id, model))
        self.tell(lambda: content.log_tags(self.id, identity))
        self.tell(lambda: content.write_card(self.id))


@contextlib.contextmanager
def training_run(trainer: Trainer, params: Params, tokens: Tokens) -> Iterator[TrainingRun]:
    """The run of a training; one that was interrupted goes on in the run it began."""
    run = TrainingRun(trainer)
    assert trainer.resume is not None
    note = trainer.resume.folder / "mlflow_run_id"
    with _ended_properly(run):
        run.begin(trainer, params, tokens, note)
        yield run
    note.unlink(missing_ok=True)


@contextlib.contextmanager
def model_run(model: Path) -> Iterator[Run]:
    """The run that made `model`; where the store has none, one restored from what DVC knows."""
    run = Run()
    with _ended_properly(run):
        run.tell(lambda: _open_model_run(run, model))
        yield run


def _open_model_run(run: Run, model: Path) -> None:
    found = content.find(file_digest(model, "md5"))
    if found is not None:
        run.start(run_id=found.info.run_id)
    else:
        run.start(**content.restored(model))
        content.restore_model(run.id, model)


@contextlib.contextmanager
def _ended_properly(run: Run) -> Iterator[None]:
    """A crash reads FAILED, a signal KILLED, and only what came to its end FINISHED."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (SystemExit, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        run.end(status)
