"""The scheduler in its thread, seen from the event loop: a job for each completion request."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from queue import Full

from minigpt.generation.sequence import Sequence
from minigpt.serving.errors import ApiError
from minigpt.serving.metrics import Metrics
from minigpt.serving.scheduler import Progress, Scheduler


class Jobs:
    """The unfinished jobs. All methods run in the event loop."""

    def __init__(self, scheduler: Scheduler, metrics: Metrics):
        self._scheduler, self._metrics = scheduler, metrics
        self._jobs: dict[Sequence, Job] = {}  # of each unfinished sequence
        self._thread = threading.Thread(target=scheduler.run, args=(self._deliver,), daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the scheduler in its thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        yield
        self._scheduler.stop()
        await asyncio.to_thread(self._thread.join)

    def submit(self, sequences: list[Sequence], stream: bool) -> "Job":
        """Start a job; without `stream` its progress arrives at the end of each text.

        Raises:
            ApiError: too many texts are waiting, or the job alone has more than may wait.
        """
        if len(sequences) > (most := self._scheduler.capacity):
            problem = f"{len(sequences)} texts are more than the {most} that this server accepts"
            raise ApiError(f"n: {problem}; send fewer", param="n")
        try:
            self._scheduler.submit(sequences)
        except Full:
            message = "too many texts are waiting; try again later"
            raise ApiError(message, 429, headers={"Retry-After": "1"}) from None
        job = Job(sequences, stream, self._metrics)
        self._jobs.update(dict.fromkeys(sequences, job))
        return job

    def cancel(self, job: "Job") -> None:
        """End the sequences of a job that have not finished, and free their rows."""
        self._scheduler.cancel(job.unfinished)

    def _deliver(self, progress: list[Progress]) -> None:
        """Hand over what was generated; called in the scheduler's thread."""
        self._loop.call_soon_threadsafe(self._receive, progress)

    def _receive(self, progress: list[Progress]) -> None:
        for part in progress:
            job = self._jobs[part.sequence]
            job.add(part)
            if part.finish_reason:
                del self._jobs[part.sequence]


class Job:
    """The progress of one request.

    Attributes:
        unfinished: sequences that are waiting or active.
    """

    def __init__(self, sequences: list[Sequence], stream: bool, metrics: Metrics):
        self.unfinished = dict.fromkeys(sequences)
        self._stream, self._metrics = stream, metrics
        self._start = time.perf_counter()
        self._times: dict[Sequence, float] = {}  # of the last event
        self._new: dict[Sequence, Progress] = {}  # not read yet
        self._arrived = asyncio.Event()
        metrics.prompt_tokens.inc(sum(sequence.prompt_length - 1 for sequence in sequences))

    def add(self, part: Progress) -> None:
        """Add new progress to what was not read yet."""
        now = time.perf_counter()
        self._new[part.sequence] = part.after(self._new.get(part.sequence))
        if part.finish_reason:
            del self.unfinished[part.sequence]
            self._metrics.duration.observe(now - self._start)
            self._metrics.generated_tokens.inc(part.length)
            self._metrics.canceled.inc(part.finish_reason == "canceled")
        if part.finish_reason or self._stream:
            self._arrived.set()

    async def progress(self) -> AsyncIterator[Progress]:
        """Yield the progress of all sequences until they end or the client leaves.

        A slow reader gets more at once.

        Raises:
            ApiError: the model failed.
        """
        while self.unfinished or self._new:
            await self._arrived.wait()
            self._arrived.clear()
            for sequence in list(self._new):
                if not (self._stream or self._new[sequence].finish_reason):
                    continue
                part = self._new.pop(sequence)  # as it is now: `add` may run during each yield
                if part.finish_reason == "canceled":
                    return  # the client has left
                if part.finish_reason == "failed":
                    raise ApiError("the model failed; the log of the server has the details", 500)
                if self._stream:
                    self._measure(sequence)
                yield part

    def _measure(self, sequence: Sequence) -> None:
        now = time.perf_counter()
        if sequence in self._times:
            self._metrics.event_gap.observe(now - self._times[sequence])
        else:
            self._metrics.first_token.observe(now - self._start)
        self._times[sequence] = now
