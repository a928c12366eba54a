"""The scheduler, stepped without threads."""

import itertools
from queue import Full
from types import SimpleNamespace

import pytest
from conftest import engine_ids
from local_server import export_small

from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling
from minigpt.generation.sequence import Sequence
from minigpt.serving import scheduler as scheduler_module
from minigpt.serving.scheduler import Scheduler


@pytest.fixture(scope="module")
def backend(tokenizer, tmp_path_factory) -> OnnxBackend:
    return OnnxBackend(export_small(tmp_path_factory.mktemp("served"), tokenizer))


SAMPLING = Sampling(2.0, ignore_eos=True, seed=4)


def sequences(backend, *prompts, max_new_tokens=20):
    return [
        Sequence(backend.tokenizer, prompt, SAMPLING, max_new_tokens=max_new_tokens)
        for prompt in prompts
    ]


def test_texts_join_between_steps(backend):
    scheduler = Scheduler(backend, max_waiting=0)
    first, second, third = texts = sequences(backend, "the", "x" * 70, "")
    received = dict.fromkeys(texts, "")
    for joining in ([first], [second, third], *[[]] * 40):
        scheduler.submit(joining)
        for part in scheduler.step():
            received[part.sequence] += part.text
    for text in texts:
        assert text.generated == engine_ids(backend, text.prompt, 20, SAMPLING)
        assert received[text] == text.text
    assert not scheduler.engine.unfinished


@pytest.mark.parametrize("step_seconds", [0, 1])
def test_first_and_last_text_are_delivered_at_once_the_rest_by_time(
    backend, monkeypatch, step_seconds
):
    clock = itertools.count(step=step_seconds)
    monkeypatch.setattr(scheduler_module, "time", SimpleNamespace(perf_counter=clock.__next__))
    scheduler = Scheduler(backend, max_waiting=0)
    texts = sequences(backend, "the", "a")
    scheduler.submit(texts)
    deliveries = []

    def deliver(progress):
        deliveries.append(progress)
        if not scheduler.engine.unfinished:
            scheduler.stop()

    scheduler.run(deliver)
    received = dict.fromkeys(texts, "")
    for part in itertools.chain(*deliveries):
        received[part.sequence] += part.text
    assert received == {text: text.text for text in texts}
    assert [part.length for part in deliveries[0]] == [2, 2]  # the first step has two passes
    assert len(deliveries) == (19 if step_seconds else 2)


def test_the_end_is_reported_once(backend):
    scheduler = Scheduler(backend, max_waiting=0)
    texts = sequences(backend, "a", "b")
    scheduler.submit(texts)
    ends = []
    for _ in range(25):
        ends += [part.finish_reason for part in scheduler.step() if part.finish_reason]
        scheduler.cancel(texts[:1])
    assert ends == ["canceled", "length"]


def test_more_texts_than_may_wait_are_refused(backend):
    scheduler = Scheduler(backend, max_waiting=2)
    rows = backend.max_batch_size
    texts = sequences(backend, *["a"] * (rows + 3))
    with pytest.raises(Full):
        scheduler.submit(texts)
    scheduler.submit(texts[:-1])
    assert scheduler.waiting == 2
    with pytest.raises(Full):
        scheduler.submit(texts[-1:])
    scheduler.cancel(texts[:1])
    scheduler.step()
    scheduler.submit(texts[-1:])


def test_a_failing_step_ends_only_its_texts(backend, monkeypatch, caplog):
    scheduler = Scheduler(backend, max_waiting=9)
    before, after = sequences(backend, "a", "a")
    scheduler.submit([before])
    scheduler.step()
    with monkeypatch.context() as patch:
        patch.setattr(scheduler.engine, "step", lambda: 1 / 0)
        (part,) = scheduler.step()
    assert (part.sequence, part.finish_reason) == (before, "failed")
    assert "ZeroDivisionError" in caplog.text
    scheduler.submit([after])
    for _ in range(25):
        scheduler.step()
    assert after.generated == engine_ids(backend, "a", 20, SAMPLING)
