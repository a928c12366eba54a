"""What reading a corpus shows while it runs: a bar with rate and time left, on a terminal only."""

import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from minigpt.corpus.corpus import Corpus, Document

REDRAW_EVERY = 0.1  # seconds


class ReadingProgress:
    """Use as a context manager: it gives the documents of `corpus`, and shows how far they have been taken."""

    def __init__(self, what: str, corpus: Corpus):
        console = Console(stderr=True)
        columns = (
            TextColumn(what),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TextColumn("left"),
        )
        self._bar = Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self._corpus = corpus

    def __enter__(self) -> Iterator[Document]:
        self._bar.start()
        return self._documents()

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _documents(self) -> Iterator[Document]:
        task = self._bar.add_task("", total=self._corpus.bytes_total)
        drawn = 0.0
        for document in self._corpus:
            if time.monotonic() - drawn > REDRAW_EVERY:
                self._bar.update(task, completed=self._corpus.bytes_read)
                drawn = time.monotonic()
            yield document
