"""Generation speed by the length of the text, for each sampling option.

    taskset -c 1 python benchmarks/lengths.py

The lengths take turns in each round. The number in brackets is the median over the rounds of the
speed, in tokens per second, relative to the first length: 1 means that it does not depend on the
length. It cannot be exactly 1: attention takes longer until the window is full, and later each move
of the window is a forward pass over half of it. ONNX Runtime uses one thread, and the times are of
the processor, so they contain no pauses for other processes.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from minigpt.generation.engine import run
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling
from minigpt.generation.sequence import Logprobs, Sequence

PROMPT = "Once upon a time"
# case → drafts, options of Sequence, options of Sampling
CASES: dict[str, tuple[bool, dict[str, Any], dict[str, Any]]] = {
    "defaults, with drafts": (True, {}, {}),
    "defaults": (False, {}, {}),
    "greedy": (False, {}, {"temperature": 0.0}),
    "top-k": (False, {}, {"top_k": 5}),
    "top-p": (False, {}, {"top_p": 0.9}),
    "min-p": (False, {}, {"min_p": 0.05}),
    "repetition penalty": (False, {}, {"repetition_penalty": 1.2}),
    "repetition penalty, with drafts": (True, {}, {"repetition_penalty": 1.2}),
    "stop strings": (False, {"stop": ["zzzz", "The end."]}, {}),
    "log-probabilities": (False, {"logprobs": Logprobs()}, {}),
}


def seconds_per_token(backend: OnnxBackend, case: str, length: int, seed: int) -> float:
    _, options, sampling = CASES[case]
    sampled = Sampling(ignore_eos=True, seed=seed, **sampling)
    sequence = Sequence(backend.tokenizer, PROMPT, sampled, max_new_tokens=length, **options)
    start = time.process_time()
    for _ in run(backend, [sequence]):
        pass
    return (time.process_time() - start) / len(sequence.generated)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("models/minigpt.onnx"))
    parser.add_argument("--lengths", nargs="+", type=int, default=[100, 300, 1000, 3000, 10000])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    backend = OnnxBackend(arguments.model, threads=1)
    table = backend.ngram_table
    print("microseconds per token (relative speed), by length")
    print(f"{'':34}", *(f"{length:>14}" for length in arguments.lengths))
    for case in CASES:
        backend.ngram_table = table if CASES[case][0] else None
        rounds = []
        for seed in range(arguments.rounds + 1):  # the first warms up
            times = [seconds_per_token(backend, case, n, seed) for n in arguments.lengths]
            rounds.append([value * 1e6 for value in times])
        columns = list(zip(*rounds[1:], strict=True))
        line = f"{case:34}"
        for times in columns:
            speeds = [first / value for first, value in zip(columns[0], times, strict=True)]
            line += f"{statistics.median(times):8.1f} ({statistics.median(speeds):.2f})"
        print(line)


if __name__ == "__main__":
    main()
