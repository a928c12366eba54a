"""Memory and speed of the stages build_vocab and prepare on a large generated text.

    python benchmarks/preparation.py --gigabytes 1

The two stages run as in `dvc repro`, in a temporary folder. Memory is the peak of the sum over all
processes of a stage, with shared pages counted once (PSS).
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

PROJECT = Path(__file__).parent.parent


def generate(path: Path, size: int) -> int:
    """Write about `size` bytes of distinct documents and return their number."""
    words = (PROJECT / "data/raw/tales.txt").read_text(encoding="utf-8").split()
    rng = random.Random(0)
    written = documents = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            start = rng.randrange(len(words) - 200)
            document = f"{documents} " + " ".join(words[start : start + rng.randrange(20, 200)])
            written += file.write(document + "\n\n")
            documents += 1
    return documents


def peak_memory(process: subprocess.Popen) -> int:
    """Wait for a process, and return the peak memory of it and its children in bytes."""
    peak = 0
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        for member in (parent, *parent.children(recursive=True)):
            try:
                total += member.memory_full_info().pss
            except psutil.Error:
                continue
        peak = max(peak, total)
        time.sleep(0.1)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("minigpt", "pipeline"):
            shutil.copytree(PROJECT / name, Path(folder) / name)
        params = (PROJECT / "params.yaml").read_text().replace("data/raw/tales.txt", "text.txt")
        (Path(folder) / "params.yaml").write_text(params)
        (Path(folder) / "data").mkdir()
        text = Path(folder) / "text.txt"
        documents = generate(text, int(arguments.gigabytes * 1e9))
        size = text.stat().st_size
        print(f"text: {size / 1e9:.2f} GB in {documents:,} distinct documents")
        for stage in ("build_vocab", "prepare"):
            start = time.perf_counter()
            environment = {**os.environ, "PYTHONPATH": folder}
            process = subprocess.Popen(
                [sys.executable, "-m", f"pipeline.{stage}"], cwd=folder, env=environment
            )
            peak = peak_memory(process)
            seconds = time.perf_counter() - start
            if process.returncode:
                sys.exit(f"{stage} failed")
            print(f"{stage}: {size / seconds / 1e6:.1f} MB/s, peak memory {peak / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
