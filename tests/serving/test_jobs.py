"""Progress that a job hands over to its reader, without threads."""

import asyncio

import pytest
from local_server import export_small

from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sequence import Sequence
from minigpt.serving.jobs import Job
from minigpt.serving.metrics import Metrics
from minigpt.serving.scheduler import Progress, Scheduler


@pytest.fixture
def job(tokenizer, tmp_path) -> tuple[Job, Sequence, Sequence]:
    backend = OnnxBackend(export_small(tmp_path, tokenizer))
    first, second = (Sequence(tokenizer, "") for _ in range(2))
    metrics = Metrics(Scheduler(backend, max_waiting=0))
    return Job([first, second], True, metrics), first, second


def test_a_slow_reader_of_two_texts_loses_nothing(job):
    job, first, second = job

    async def read() -> list[Progress]:
        job.add(Progress(first, "a", 1, None))
        job.add(Progress(second, "b", 1, None))
        reader = job.progress()
        parts = [await anext(reader)]
        job.add(Progress(second, "c", 2, "length"))
        job.add(Progress(first, "d", 2, "length"))
        return parts + [part async for part in reader]

    parts = asyncio.run(asyncio.wait_for(read(), timeout=60))
    assert parts == [
        (first, "a", 1, None),
        (second, "bc", 2, "length"),
        (first, "d", 2, "length"),
    ]


def test_nothing_is_handed_over_after_the_client_left(job):
    job, first, second = job

    async def read() -> list[Progress]:
        for sequence in (first, second):
            job.add(Progress(sequence, "", 0, "canceled"))
        return [part async for part in job.progress()]

    assert asyncio.run(asyncio.wait_for(read(), timeout=60)) == []
