"""Speedup of data-parallel training: two processes and one, each with one thread.

python benchmarks/scaling.py
"""

import os
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from minigpt.common.config import load_params
from minigpt.data.batches import Batches
from minigpt.model.model import MiniGPT
from minigpt.training import distributed
from minigpt.training.train import Trainer

STEPS, ROUNDS = 40, 5


def train() -> None:
    """Train the default model on random ids; rank 0 prints the seconds."""
    params = load_params()
    with distributed.joined() as group:
        ids = np.random.default_rng(0).integers(4, 69, 100_000)
        sizes = ("packed", 16, params.model.max_seq_len)
        changes = {
            "max_steps": STEPS,
            "batch_size": 16,
            "eval_interval": 10**9,
            "log_interval": 10**9,
        }
        config = params.train.model_copy(update=changes)
        model = MiniGPT(69, params.model)
        trainer = Trainer(
            model, Batches(ids, *sizes), Batches(ids[:500], *sizes), config, group=group
        )
        seconds: list[float] = []
        began = time.perf_counter()
        trainer.run(lambda row: seconds.append(time.perf_counter() - began))
        if group.rank == 0:
            print(seconds[0])


def seconds_of(processes: int) -> float:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        __file__,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return float(
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    )


def main() -> None:
    torch.set_num_threads(1)
    ratios = []
    for _ in range(ROUNDS):
        one, two = seconds_of(1), seconds_of(2)
        ratios.append(one / two)
        print(f"one process {one:5.1f} s   two {two:5.1f} s   ×{one / two:.2f}", flush=True)
    print(f"median ×{statistics.median(ratios):.2f}")


if __name__ == "__main__":
    train() if distributed.launched() else main()
