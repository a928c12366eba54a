"""What long work shows while it runs: a live bar on a terminal, and little elsewhere."""

import logging
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from minigpt.train import Progress as TrainerProgress
from minigpt.train import Row

log = logging.getLogger(__name__)


class TrainingProgress(Progress):
    """Use as a context manager, and call with each new row of the history; elsewhere, a line a validation."""

    def __init__(self, total_steps: int, done: TrainerProgress):
        super().__init__(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.total_steps = total_steps
        self.figures: dict[str, float] = {}
        self.began, self.tokens_before = time.monotonic(), done.tokens
        self.task = self.add_task("train", total=total_steps, completed=done.step, figures="")

    def __call__(self, row: Row) -> None:
        self.figures |= {name: row[name] for name in ("train/loss", "val/loss") if name in row}
        speed = (row["tokens"] - self.tokens_before) / (time.monotonic() - self.began)
        losses = "  ".join(f"{name} {value:.4f}" for name, value in self.figures.items())
        figures = f"{losses}  {speed:,.0f} tokens/s"
        self.update(self.task, completed=row["step"], figures=figures)
        if "val/loss" in row and not self.console.is_terminal:
            log.info("step %d/%d  %s", row["step"], self.total_steps, figures)

    def start(self) -> None:
        """Draw only where there is somebody to look."""
        if self.console.is_terminal:
            super().start()
