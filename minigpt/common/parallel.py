"""The same work on many batches, on all cores, in order and in little memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

BATCH = 1 << 20  # characters of text that one process takes at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


def batched_by_size(
    items: Iterable[Item], size: Callable[[Item], int], limit: int
) -> Iterator[list[Item]]:
    """Lists of consecutive items, each closed once the sizes in it reach `limit`."""
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
    """As `map`, in other processes; only a few items are under way at a time, whatever their number.

    `function` must be importable. A few items are done here: starting processes costs more than they do.
    """
    iterator = iter(items)
    first = list(islice(iterator, 4))
    if len(first) < 4:
        yield from map(function, first)
        return
    # imported here, since a tokenizer that only generates text has no need of it
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    workers = os.cpu_count() or 1
    # spawn: a forked child would inherit the locks that other threads of this process hold
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        under_way: deque[Future[Result]] = deque()
        for item in chain(first, iterator):
            under_way.append(pool.submit(function, item))
            if len(under_way) > 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
