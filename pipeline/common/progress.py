"""What long work shows while it runs: a live bar on a terminal, and little elsewhere."""

import logging
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from minigpt.training.train import Progress as TrainerProgress
from minigpt.training.train import Row

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
        self.figures: dict[str, str] = {}
        self.before: tuple[float, float] = (time.monotonic(), done.tokens)
        self.task = self.add_task("train", total=total_steps, completed=done.step, figures="")

    def __call__(self, row: Row) -> None:
        now = (time.monotonic(), row["tokens"])
        if "train/loss" in row:  # a validation takes time, but has no tokens of its own
            self.figures["tokens/s"] = (
                f"{(now[1] - self.before[1]) / (now[0] - self.before[0]):,.0f}"
            )
        self.before = now
        self.figures |= {
            name: f"{row[name]:.4f}" for name in ("train/loss", "val/loss") if name in row
        }
        figures = "  ".join(
            f"{name} {value}" for name, value in sorted(self.figures.items(), reverse=True)
        )
        self.update(self.task, completed=row["step"], figures=figures)
        if "val/loss" in row and not self.console.is_terminal:
            log.info("step %d/%d  %s", row["step"], self.total_steps, figures)

    def start(self) -> None:
        """Draw only where there is somebody to look."""
        if self.console.is_terminal:
            super().start()
