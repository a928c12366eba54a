import math

import pytest

from minigpt.common.parallel import parallel_map


def test_parallel_map_keeps_the_order():
    assert list(parallel_map(math.sqrt, (n * n for n in range(50)))) == list(range(50))
    assert list(parallel_map(math.sqrt, [4])) == [2]


def test_parallel_map_raises_the_error_of_a_worker():
    with pytest.raises(ValueError, match="math domain"):
        list(parallel_map(math.sqrt, [1, 1, 1, 1, 1, -1]))
