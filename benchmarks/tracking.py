"""Cost of tracking: time of the training stage with and without tracking.

    python benchmarks/tracking.py --rounds 3                 the default training: takes long
    python benchmarks/tracking.py --rounds 3 --steps 200     a short training: mostly fixed costs

Requires the vocabulary and the tokens, which `dvc repro` writes. Each training runs in a copy of
the project with a new store. The output is the wall time and CPU time of the whole process,
including child processes; the ratios are those of the medians. Equal trainings differ by a few
percent, so the difference is noisy. The CPU time of tracking itself is exact: that of its thread,
and of its calls in the main thread.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEW_STORE = "from pipeline.tracking.store import mlflow; mlflow()"
ON = """
import time
from pipeline.tracking.run import Run, TrainingRun
spent = []
def count(owner, name):
    method = getattr(owner, name)
    def counted(*arguments):
        before = time.thread_time()
        try:
            return method(*arguments)
        finally:
            spent.append(time.thread_time() - before)
    setattr(owner, name, counted)
count(Run, "_upload_regularly")
for name in ("__enter__", "log", "finish"):
    count(TrainingRun, name)
from pipeline.train import main; main()
print(sum(spent))
"""
OFF = """
from unittest.mock import MagicMock
from pipeline.tracking import run
run.TrainingRun = MagicMock()
from pipeline.train import main; main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="train.max_steps")
    arguments = parser.parse_args()
    cases = {"without tracking": OFF, "with tracking": ON}
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in cases}
    for _ in range(arguments.rounds):
        for name, code in cases.items():
            seconds[name].append(_train(code, arguments.steps))
            wall, processor, _ = seconds[name][-1]
            print(f"{name:18} {wall:7.2f} s wall {processor:7.2f} s CPU", flush=True)
    for index, kind in enumerate(("wall", "CPU")):
        without, tracked = (
            statistics.median(time[index] for time in times) for times in seconds.values()
        )
        print(f"tracking costs {tracked - without:.2f} s {kind} time, x{tracked / without:.4f}")
    own = statistics.median(time[2] for time in seconds["with tracking"])
    print(f"tracking itself takes {own:.2f} s CPU time, {own / tracked:.2%}")


def _train(code: str, steps: int) -> tuple[float, float, float]:
    """Return the wall time, the CPU time, and the CPU time of tracking, in seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("minigpt", "pipeline", "data", "dvc.yaml", "params.yaml"):
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)
        params = (folder / "params.yaml").read_text()
        (folder / "params.yaml").write_text(
            params.replace("max_steps: 2000", f"max_steps: {steps}")
        )
        env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("MLFLOW_", "DVC_"))
        }
        subprocess.run(
            [sys.executable, "-c", NEW_STORE], cwd=folder, env=env, check=True, capture_output=True
        )
        start, before = time.perf_counter(), os.times()
        training = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=env, check=True, capture_output=True
        )
        wall, after = time.perf_counter() - start, os.times()
        spent = (
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
        return wall, spent, float(training.stdout or 0)


if __name__ == "__main__":
    main()
