"""Speed and memory of the stages build_vocab and prepare on a generated text, on both paths.

    python benchmarks/preparation.py --megabytes 200

The plain path takes documents one at a time, the fast path blocks of bytes; both write the same
files, which is checked. The stages run as in `dvc repro`, in a temporary folder, the two paths in
turn for several rounds. Speeds are medians and include the start of the processes; CPU time is that
of all processes. Memory is the peak of the sum over all processes of a stage, with shared pages
counted once (PSS).
"""

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

PROJECT = Path(__file__).parent.parent
OUTPUTS = ("data/vocab.json", "data/documents.parquet", "data/tokens", "reports")
CYRILLIC = {ord("a") + i: 0x430 + i for i in range(26)}
# the fast path does not apply
PLAIN = "from minigpt.corpus import fast_path; fast_path.applies = lambda corpus: False; "


class Run(NamedTuple):
    """Costs of one stage."""

    seconds: float
    cpu_seconds: float
    peak: int


def generate(path: Path, size: int, cyrillic: bool = False) -> int:
    """Write about `size` bytes of distinct documents and return their number."""
    text = (PROJECT / "data/raw/tales.txt").read_text(encoding="utf-8")
    words = (text.translate(CYRILLIC) if cyrillic else text).split()
    rng = random.Random(0)
    documents = 0
    with path.open("wb") as file:
        while file.tell() < size:
            start = rng.randrange(len(words) - 200)
            document = f"{documents} " + " ".join(words[start : start + rng.randrange(20, 200)])
            file.write(f"{document}\n\n".encode())
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


def cpu_seconds() -> float:
    """Return the CPU time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_stage(folder: Path, stage: str, plain: bool) -> Run:
    """Run a stage on one of the paths."""
    code = (
        f"{PLAIN if plain else ''}from pipeline.common.stage import run_stage; "
        f"from pipeline.{stage} import main; run_stage(main)"
    )
    start, cpu = time.perf_counter(), cpu_seconds()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stderr=subprocess.DEVNULL,
    )
    peak = peak_memory(process)
    if process.returncode:
        sys.exit(f"{stage} failed")
    return Run(time.perf_counter() - start, cpu_seconds() - cpu, peak)


def output_digest(folder: Path) -> str:
    """Return a digest of all files that the stages wrote."""
    command = f"find {' '.join(OUTPUTS)} -type f | sort | xargs sha256sum"
    return subprocess.run(
        command, shell=True, cwd=folder, check=True, capture_output=True, text=True
    ).stdout


def report(stage: str, size: int, runs: dict[str, list[Run]]) -> None:
    """Print the speeds, the ratio and the memory of a stage."""
    first = statistics.median(run.seconds for run in next(iter(runs.values())))
    medians = {path: statistics.median(run.seconds for run in runs[path]) for path in runs}
    for path, seconds in medians.items():
        cpu = statistics.median(run.cpu_seconds for run in runs[path])
        peak = max(run.peak for run in runs[path])
        print(
            f"{stage:12} {path:6} {size / seconds / 1e6:7.1f} MB/s  x{first / seconds:5.2f}"
            f"  {cpu / size * 1e9:6.1f} CPU s/GB  peak {peak / 2**20:5.0f} MiB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cyrillic", action="store_true", help="text of two bytes a letter")
    parser.add_argument("--tokenizer", choices=("char", "bpe"), default="char")
    parser.add_argument("--paths", nargs="+", choices=("plain", "fast"), default=["plain", "fast"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for package in ("minigpt", "pipeline"):
            shutil.copytree(PROJECT / package, folder / package)
        params = (PROJECT / "params.yaml").read_text().replace("data/raw/tales.txt", "text.txt")
        params = params.replace("type: char ", f"type: {arguments.tokenizer} ")
        (folder / "params.yaml").write_text(params)
        (folder / "data").mkdir()
        text = folder / "text.txt"
        documents = generate(text, arguments.megabytes * 1_000_000, arguments.cyrillic)
        size = text.stat().st_size
        print(f"text: {size / 1e6:.0f} MB in {documents:,} distinct documents", flush=True)
        digests = set()
        runs: dict[str, dict[str, list[Run]]] = {"build_vocab": {}, "prepare": {}}
        for path in arguments.paths * arguments.rounds:
            for stage, by_path in runs.items():
                run = run_stage(folder, stage, path == "plain")
                by_path.setdefault(path, []).append(run)
            digests.add(output_digest(folder))
        if len(digests) > 1:
            sys.exit("the two paths wrote different files")
        for stage, by_path in runs.items():
            report(stage, size, by_path)


if __name__ == "__main__":
    main()
