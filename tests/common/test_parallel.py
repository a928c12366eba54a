import math
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from minigpt.common.errors import UserError
from minigpt.common.parallel import parallel_map


def test_parallel_map_keeps_the_order():
    assert list(parallel_map(math.sqrt, (n * n for n in range(50)))) == list(range(50))
    assert list(parallel_map(math.sqrt, [4])) == [2]


def test_parallel_map_raises_the_error_of_a_worker():
    with pytest.raises(ValueError, match="math domain"):
        list(parallel_map(math.sqrt, [1, 1, 1, 1, 1, -1]))


def test_a_killed_worker_is_one_line():
    with pytest.raises(UserError, match="a worker process was killed, probably because memory"):
        list(parallel_map(end_process, range(4)))


def end_process(number: int) -> None:
    os._exit(number)


def test_an_exception_ends_the_workers(tmp_path):
    results = parallel_map(take_long, [tmp_path / str(number) for number in range(9)])
    next(results)  # now the workers are busy with others
    results.close()
    assert multiprocessing.active_children() == []
    assert not list(tmp_path.iterdir())


def take_long(file: Path) -> None:
    if file.name != "0":
        time.sleep(5)
        file.touch()


def test_workers_leave_ctrl_c_to_the_main_process():
    assert all(parallel_map(ignores_ctrl_c, range(4)))
    assert not ignores_ctrl_c(0)


def ignores_ctrl_c(number: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
