"""The process that tells MLflow of a training while that goes on.

In the training's own process Python would do one thing at a time, and what MLflow does would be time lost. What is to
be told comes on the standard input, a line of JSON each: the name of a method of `TrainingRun`, and its arguments.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pipeline import content, lineage, project, run_stage
from pipeline.run import Run
from pipeline.store import client, mlflow

SEND_EVERY = 10.0  # seconds; one call for many rows, since each costs milliseconds
SUMMED = ("wall_seconds", "cpu_seconds")  # over all processes of a training that was interrupted


class TrainingRun(Run):
    """The run of a training: its curves, samples and costs."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[tuple[float, dict[str, float]]] = []
        self._samples: dict[int, str] = {}  # by step
        self._sent_at = time.monotonic()
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self._sent = 0  # so many rows
        self._sent_samples = 0
        # what a continued run has already
        self._known_step = {"train/loss": 0, "val/loss": 0}
        self._known_samples: dict[int, str] = {}
        self._spent = dict.fromkeys(SUMMED, 0.0)

    def begin(
        self,
        note: str,
        params: dict[str, Any],
        machine: dict[str, str],
        parameters: int,
        data_digest: str,
        history: list[dict[str, float]],
    ) -> None:
        """Start the run, or go on with the one whose id the file `note` holds.

        `history`: rows of a training that goes on, of which a killed process may not have told all.
        """
        for row in history:
            content.add_row(self._rows, row)
        origin = lineage.origin()
        flat = lineage.flatten(params)
        name = lineage.run_name(flat, origin.get("dvc_baseline", "HEAD"))
        tags = {**origin, **lineage.machine(), **machine}
        if (pretrained := params["train"]["init_from"]) is not None:
            tags["init_from_md5"] = project.file_digest(Path(pretrained), "md5")

        def begin() -> None:
            file = Path(note)
            if file.exists() and not self.id:
                self._continue(file.read_text())
            self.start(run_name=name, tags=tags, log_system_metrics=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.id)
            content.log_tags(self.id, origin)  # of this process, where it goes on with the run of another
            content.log_params(self.id, flat)
            content.log_metrics(self.id, {"parameters": parameters})
            content.log_dataset(self.id, params["data"]["path"], data_digest)

        self.tell(begin)

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

    def log(self, row: dict[str, float]) -> None:
        """Take the metrics of one step; every few seconds they are sent together."""
        content.add_row(self._rows, row)
        if time.monotonic() - self._sent_at > SEND_EVERY:
            self._sent_at = time.monotonic()
            self.tell(self._send)

    def sample(self, step: int, text: str) -> None:
        """Take a text that the model wrote at this step."""
        self._samples = {**self._samples, step: text}  # a new one: the other thread reads the old

    def _send(self) -> None:
        end = len(self._rows)  # the other thread adds to them
        content.log_rows(
            self.id, [(when, self._whole(row)) for when, row in self._rows[self._sent : end] if self._new(row)]
        )
        self._sent = end
        samples = self._samples
        if len(samples) > self._sent_samples:
            content.log_samples(self.id, {**self._known_samples, **samples})
            self._sent_samples = len(samples)

    def _new(self, row: dict[str, float]) -> bool:
        return row["step"] > self._known_step["train/loss" if "train/loss" in row else "val/loss"]

    def _whole(self, row: dict[str, float]) -> dict[str, float]:
        """With what the earlier processes of this training spent."""
        return {name: value + self._spent.get(name, 0.0) for name, value in row.items()}

    def finish(self, held_out: bool) -> None:
        """Log the curves, and tag the run with the model it made; the figures are drawn when that is evaluated."""
        project.MODEL_CARD.unlink(missing_ok=True)  # an earlier model's
        reports = {file: file.read_text() for file in (project.TRAINING, *content.CURVES.values())}
        identity = content.identity(project.MODEL, held_out)
        self.tell(self._send)
        self.tell(lambda: content.log_texts(self.id, reports))
        self.tell(lambda: content.carry_over(self.id, project.MODEL))
        self.tell(lambda: content.log_tags(self.id, identity))
        self.tell(lambda: content.write_card(self.id))


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the training gets them too, and then says how it ended
    run = TrainingRun()
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        getattr(run, name)(*arguments)
        if name == "end":
            return
    os._exit(1)  # the training was killed: what is not told yet, the one that goes on with it will tell


if __name__ == "__main__":
    run_stage(main)
