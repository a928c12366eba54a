"""Generation speed of this checkout compared with another one, which must generate the same text.

    git worktree add /tmp/before HEAD~1
    taskset -c 1 python benchmarks/checkouts.py /tmp/before

Each checkout exports the checkpoint (--model) with its own code and generates in its own process.
In each round every case runs once in each process, and the processes take turns. A ratio above 1
means that this checkout is faster; it is the median over the rounds. ONNX Runtime uses one thread
and the times are of the processor, so they contain no pauses for other processes.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
LENGTH, PROMPT = 200, "Once upon a time"
# case → number of texts, drafts, quantization, options of Sampling
CASES = {
    "one text": (1, False, None, {}),
    "one text, with drafts": (1, True, None, {}),
    "one text, repetition penalty": (1, False, None, {"repetition_penalty": 1.2}),
    "one text, top-p and min-p": (1, False, None, {"top_p": 0.9, "min_p": 0.02}),
    "one text, int8": (1, False, "int8", {}),
    "6 texts": (6, False, None, {}),
    "16 texts": (16, False, None, {}),
    "16 texts, int8": (16, False, "int8", {}),
}


def serve(model: Path) -> None:
    """Run the cases and seeds that arrive on standard input; print seconds and the text's hash."""
    from minigpt.export.onnx_graph import to_onnx
    from minigpt.generation.engine import run
    from minigpt.generation.onnx_backend import OnnxBackend
    from minigpt.generation.sampling import Sampling
    from minigpt.generation.sequence import Sequence
    from minigpt.model.checkpoint import load_model

    network, metadata = load_model(model)
    backends = {}
    for quantize in (None, "int8"):
        settings = {} if quantize is None else {"quantization": {"block_size": 64}}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(to_onnx(network.eval(), {**metadata, **settings}, quantize))
            backends[quantize] = OnnxBackend(path, threads=1)
    table = backends[None].ngram_table
    for line in sys.stdin:
        case, seed = line.rstrip("\n").split("\t")
        count, drafts, quantize, options = CASES[case]
        backend = backends[quantize]
        backend.ngram_table = table if drafts else None
        sampling = Sampling(ignore_eos=True, seed=int(seed), **options)
        sequences = [Sequence(backend.tokenizer, PROMPT, sampling, n, LENGTH) for n in range(count)]
        start = time.process_time()
        for _ in run(backend, sequences):
            pass
        seconds = time.process_time() - start
        digest = hashlib.sha256(repr([each.ids for each in sequences]).encode()).hexdigest()
        print(seconds, digest, flush=True)


def start(checkout: Path, model: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, "--serve", "--model", str(model)]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        cwd=checkout,
    )


def measure(process: "subprocess.Popen[str]", case: str, seed: int) -> tuple[float, str]:
    """Return the microseconds per token, and the hash of the text."""
    assert process.stdin
    assert process.stdout
    print(case, seed, sep="\t", file=process.stdin, flush=True)
    seconds, digest = process.stdout.readline().split()
    return float(seconds) / LENGTH / CASES[case][0] * 1e6, digest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, nargs="?", help="folder of the other checkout")
    parser.add_argument("--model", type=Path, default=ROOT / "models/minigpt.safetensors")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model = arguments.model.resolve()
    if arguments.serve:
        return serve(model)
    checkouts = arguments.other.resolve(), ROOT
    processes = [start(checkout, model) for checkout in checkouts]
    results: dict[str, list[list[tuple[float, str]]]] = {case: [] for case in arguments.cases}
    for seed in range(arguments.rounds + 1):  # the first warms up
        for case, rounds in results.items():
            order = (0, 1) if seed % 2 else (1, 0)
            found = {side: measure(processes[side], case, seed) for side in order}
            rounds.append([found[0], found[1]])
    for process in processes:
        process.communicate()
    print("case, microseconds per token: before, now, ratio, equal texts")
    for case, rounds in results.items():
        equal = sum(before[1] == now[1] for before, now in rounds)
        times = [[microseconds for microseconds, _ in pair] for pair in rounds[1:]]
        before, now = (statistics.median(side) for side in zip(*times, strict=True))
        ratio = statistics.median(theirs / ours for theirs, ours in times)
        print(f"{case:32} {before:8.1f} {now:8.1f}   x{ratio:.3f}   {equal}/{len(rounds)}")


if __name__ == "__main__":
    main()
