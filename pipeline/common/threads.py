"""The number of CPU threads of a stage, on which the last bits of its results depend."""

import os
from typing import Literal

import torch


def use_threads(threads: int | Literal["auto"]) -> int:
    """Set the number of PyTorch's threads, if it is not "auto", and return it.

    Processes that train together on this machine share the threads.
    """
    if threads != "auto":
        torch.set_num_threads(max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    return torch.get_num_threads()
