"""Progress bars on stderr, drawn only on a terminal."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:  # a stage that only reads documents must not depend on training, nor the reverse
    from minigpt.corpus.readers import Reader
    from minigpt.training.train import Progress as TrainerProgress

log = logging.getLogger(__name__)

UPDATE_INTERVAL = 0.1  # seconds

Item = TypeVar("Item")


class ProgressBar(Progress):
    """Progress bar with the time left in its last column."""

    def __init__(self, *columns: ProgressColumn):
        # without the argument, FORCE_COLOR would draw the bar into log files
        console = Console(stderr=True, force_terminal=sys.stderr.isatty())
        super().__init__(
            *columns,
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal or console.is_dumb_terminal,
        )


@contextmanager
def reading_progress(
    stage: str, reader: "Reader", items: Iterable[Item]
) -> "Iterator[Iterator[Item]]":
    """Show how much `reader` has read while `items`, which are read by it, are iterated over."""
    bar = ProgressBar(TextColumn(stage), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    task = bar.add_task("", total=reader.bytes_total)

    def tracked() -> Iterator[Item]:
        updated = 0.0
        for item in items:
            if time.monotonic() - updated > UPDATE_INTERVAL:
                bar.update(task, completed=reader.bytes_read)
                updated = time.monotonic()
            yield item
        bar.update(task, completed=reader.bytes_total)

    with bar:
        yield tracked()


class TrainingProgress(ProgressBar):
    """Progress bar of a training; where there is no terminal, one log line per validation.

    Use as a context manager and call with the metrics of each step that is logged.
    """

    def __init__(self, total_steps: int, done: "TrainerProgress"):
        super().__init__(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
        )
        self.total_steps = total_steps
        self.figures: dict[str, str] = {}
        self.last_time, self.last_tokens = time.monotonic(), float(done.tokens)
        self.task = self.add_task("train", total=total_steps, completed=done.step, figures="")

    def __call__(self, metrics: Mapping[str, float]) -> None:
        now, tokens = time.monotonic(), metrics["tokens"]
        if "train/loss" in metrics:  # a validation takes time, but trains on no tokens
            speed = (tokens - self.last_tokens) / (now - self.last_time)
            self.figures["tokens/s"] = f"{speed:,.0f}"
        self.last_time, self.last_tokens = now, tokens
        losses = ("train/loss", "val/loss")
        self.figures |= {name: f"{metrics[name]:.4f}" for name in losses if name in metrics}
        order = sorted(self.figures.items(), reverse=True)
        figures = "  ".join(f"{name} {value}" for name, value in order)
        self.update(self.task, completed=metrics["step"], figures=figures)
        if "val/loss" in metrics and self.disable:
            log.info("step %d/%d  %s", metrics["step"], self.total_steps, figures)

    def write(self, line: str) -> None:
        """Print a line above the bar; where there is none, log it."""
        if self.disable:
            log.info("%s", line)
        else:
            self.console.out(line, highlight=False)
        self.last_time = time.monotonic()  # the line took time in which nothing was trained
