"""Entry point shared by the stages and tools: logging and signals."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from minigpt.common.entry_point import raise_on_interrupt, run_program
from pipeline.common.tries import mark_try

log = logging.getLogger(__name__)


class SignalCatcher:
    """Records SIGINT and SIGTERM instead of ending the process."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda signum, frame: self._numbers.append(signum))

    def received(self) -> bool:
        return bool(self._numbers)

    def exit(self, message: str) -> NoReturn:
        """Log `message` and exit with the code of the signal.

        DVC takes a code of 0 for complete outputs. If only another process of the group received
        the signal, the code is that of SIGTERM.
        """
        log.warning(message)
        sys.exit(128 + (self._numbers or [signal.SIGTERM])[0])


class StderrHandler(logging.Handler):
    """Prints to the current `sys.stderr`; a progress bar replaces it to stay below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage: log to stderr, and print errors that the user can fix in one line (exit code 1).

    SIGTERM becomes an exception, so that context managers close what is open.
    """
    raise_on_interrupt()
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[StderrHandler()])
    for package in ("__main__", "minigpt", "pipeline"):
        logging.getLogger(package).setLevel(logging.INFO)
    if os.environ.get("RANK", "0") != "0":
        logging.disable()  # of the processes that train together, rank 0 logs for all
    mark_try()
    run_program(main, unnamed=str(Path.cwd()))
