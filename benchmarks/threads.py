"""Speed of the default training by the number of threads: `threads` in params.yaml.

python benchmarks/threads.py 1 2 4 8
"""

import statistics
import sys
import time

import numpy as np
import torch

from minigpt.common.config import load_params
from minigpt.data.batches import Batches
from minigpt.model.model import MiniGPT
from minigpt.training.train import Trainer

STEPS, ROUNDS = 100, 5


def steps_per_second(threads: int) -> float:
    """Train the default model on random ids."""
    params = load_params()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(4, 69, 200_000)
    sizes = (params.train.layout, params.train.batch_size, params.model.max_seq_len)
    changes = {"max_steps": STEPS, "eval_interval": 10**9, "log_interval": 10**9}
    config = params.train.model_copy(update=changes)
    batches, few = Batches(ids, *sizes), Batches(ids[:2000], *sizes)
    trainer = Trainer(MiniGPT(69, params.model), batches, few, config)
    began = time.perf_counter()
    trainer.run()
    return STEPS / (time.perf_counter() - began)


def main() -> None:
    numbers = [int(text) for text in sys.argv[1:]] or [1, 2]
    steps_per_second(numbers[0])  # the first calls of kernels are slower
    # in turns, so that another load on the machine hits all of them
    rounds = [[steps_per_second(threads) for threads in numbers] for _ in range(ROUNDS)]
    for threads, speeds in zip(numbers, zip(*rounds, strict=True), strict=True):
        print(f"{threads} threads: {statistics.median(speeds):.1f} steps per second")


if __name__ == "__main__":
    main()
