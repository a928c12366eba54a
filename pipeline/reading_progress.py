"""What reading a corpus shows while it runs: a bar with rate and time left, on a terminal only."""

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from minigpt.corpus import Corpus


class ReadingProgress(Progress):
    """Use as a context manager, and call `update_read` from time to time."""

    def __init__(self, what: str, corpus: Corpus):
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        console = Console(stderr=True)
        super().__init__(
            *columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self.corpus = corpus
        self.task = self.add_task(what, total=corpus.bytes_total)

    def update_read(self) -> None:
        self.update(self.task, completed=self.corpus.bytes_read)
