"""Continuous batching: sequences of many requests join and leave one engine between its steps.

The event loop of the server submits and cancels sequences; one thread runs `Scheduler.run`. They
share a queue of commands and two counters, each written by one of them, so there are no locks. What
a step generates is handed over as values, since the sequences themselves change meanwhile.
"""

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from queue import Full, SimpleQueue
from typing import NamedTuple

from minigpt.generation.backend import Backend
from minigpt.generation.engine import Engine
from minigpt.generation.sequence import Sequence

DELIVERY_SECONDS = 0.02  # handing over text costs more than a token of a small model


class Progress(NamedTuple):
    """New text of a sequence.

    Attributes:
        sequence: the sequence.
        text: the text that became final in a step.
        length: number of tokens generated so far.
        finish_reason: that of the sequence, "failed" after an error, or None if it goes on.
    """

    sequence: Sequence
    text: str
    length: int
    finish_reason: str | None

    def after(self, earlier: "Progress | None") -> "Progress":
        """Return this progress with the text of `earlier` progress of the same sequence."""
        return self._replace(text=earlier.text + self.text) if earlier else self


class Scheduler:
    """Runs the sequences of all requests on one engine.

    Attributes:
        engine: the engine; only the thread of `run` steps it.
        max_waiting: number of sequences that may wait for a row of the batch.
    """

    def __init__(self, backend: Backend, max_waiting: int):
        self.engine = Engine(backend)
        self.max_waiting = max_waiting
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._submitted = 0  # written by `submit`
        self._finished = 0  # written by `step`
        self._sequences: dict[Sequence, None] = {}  # in the engine
        self._progress: list[Progress] = []  # of the current step
        self._stopped = False

    @property
    def capacity(self) -> int:
        """Number of sequences that may be unfinished at once."""
        return self.engine.batch_size + self.max_waiting

    @property
    def waiting(self) -> int:
        """Number of sequences without a row of the batch."""
        return max(0, self._submitted - self._finished - self.engine.batch_size)

    def submit(self, sequences: list[Sequence]) -> None:
        """Queue `sequences`; they start between two steps.

        Raises:
            Full: more than `max_waiting` would wait.
        """
        unfinished = self._submitted - self._finished + len(sequences)
        if unfinished > self.capacity:
            raise Full
        self._submitted += len(sequences)
        for sequence in sequences:
            self._commands.put(partial(self._add, sequence))

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """End `sequences` that have not finished, before the next step."""
        for sequence in sequences:
            self._commands.put(partial(self._cancel, sequence))

    def stop(self) -> None:
        """End `run` after its current step."""
        self._commands.put(partial(setattr, self, "_stopped", True))

    def run(self, deliver: Callable[[list[Progress]], None]) -> None:
        """Step while there are sequences, and wait while there are none, until `stop`.

        New text is delivered every DELIVERY_SECONDS, the first and the last of a sequence at once.
        """
        new: dict[Sequence, Progress] = {}
        last_delivery = 0.0
        while not self._stopped:
            if not self.engine.unfinished:
                self._commands.get()()
            due = time.perf_counter() >= last_delivery + DELIVERY_SECONDS
            for part in self.step():
                new[part.sequence] = part.after(new.get(part.sequence))
                due = due or bool(part.finish_reason) or part.text == part.sequence.text
            if due and new:
                deliver(list(new.values()))
                new, last_delivery = {}, time.perf_counter()

    def step(self) -> list[Progress]:
        """Carry out the commands, run one step of the engine, and return the progress."""
        while not self._commands.empty():
            self._commands.get()()
        try:
            texts: dict[Sequence, str] = {}
            for sequence, text in self.engine.step():
                texts[sequence] = texts.get(sequence, "") + text
            for sequence, text in texts.items():
                self._report(sequence, text, sequence.finish_reason)
        except Exception:  # a model that fails must not end the server
            logging.getLogger("minigpt.serving").exception("a step failed, so its texts end")
            for sequence in list(self._sequences):
                self.engine.cancel(sequence)
                self._report(sequence, "", "failed")
        progress, self._progress = self._progress, []
        return progress

    def _add(self, sequence: Sequence) -> None:
        self._sequences[sequence] = None
        self.engine.add(sequence)

    def _cancel(self, sequence: Sequence) -> None:
        if sequence in self._sequences:
            self.engine.cancel(sequence)
            self._report(sequence, "", "canceled")

    def _report(self, sequence: Sequence, text: str, finish_reason: str | None) -> None:
        self._progress.append(Progress(sequence, text, len(sequence.generated), finish_reason))
        if finish_reason:
            del self._sequences[sequence]
            self._finished += 1
