"""Parallel processing of batches on all cores, in order and in little memory."""

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

from minigpt.common.errors import UserError

if TYPE_CHECKING:
    from concurrent.futures import Future

BATCH_CHARACTERS = 1 << 20  # of text that one process takes at a time
MIN_PARALLEL_ITEMS = 4  # starting processes takes longer than processing fewer items

Item = TypeVar("Item")
Result = TypeVar("Result")


def batched_by_size(
    items: Iterable[Item], size: Callable[[Item], int], limit: int
) -> Iterator[list[Item]]:
    """Yield lists of consecutive items, each complete once its sizes add up to `limit`."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= limit:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Like `map`, in worker processes, with a bounded number of items in flight.

    `function` must be importable and is sent to each process once. A few items are processed in
    this process. An exception, such as that of Ctrl-C, ends the processes at once.
    """
    iterator = iter(items)
    first = list(islice(iterator, MIN_PARALLEL_ITEMS))
    if len(first) < MIN_PARALLEL_ITEMS:
        yield from map(function, first)
        return
    # imported here: a tokenizer that only encodes prompts does not need it
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    workers = os.cpu_count() or 1
    # spawn: a forked child would inherit locks that other threads of this process hold
    try:
        context = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(workers, context, _set_function, (function,)) as pool,
            _children_ended_by_errors(),
        ):
            in_flight: deque[Future[Result]] = deque()
            for item in chain(first, iterator):
                with _interrupts_blocked():  # `submit` starts the processes
                    in_flight.append(pool.submit(_call_function, item))
                if len(in_flight) > 2 * workers:
                    yield in_flight.popleft().result()
            while in_flight:
                yield in_flight.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, probably because memory is short; free memory and try "
            "again"
        ) from None


_function: Callable[[Any], Any]  # of a worker process


def _set_function(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function


def _call_function(item: Any) -> Any:
    return _function(item)


@contextlib.contextmanager
def _children_ended_by_errors() -> Iterator[None]:
    """End the processes that were started during the block if it raises an exception."""
    from multiprocessing import active_children

    others = active_children()
    try:
        yield
    except BaseException:  # also that of a generator which is closed
        for process in set(active_children()) - set(others):
            process.terminate()
        raise


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Delay Ctrl-C. Processes that start meanwhile ignore it; they end with this process."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
