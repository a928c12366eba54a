"""Share of prompts for which PyTorch and ONNX Runtime generate the same text.

    python benchmarks/parity.py --prompts 1000

Prompts are cut from the corpus; sampling has the defaults of `minigpt-cli generate`, and each
prompt its own seed. At the first difference of two texts, the gap shows how close the two
candidates were in PyTorch: the difference between their values of logits / temperature + noise.
"""

import argparse
import random
from pathlib import Path

import numpy as np

from minigpt.generation.backend import Backend
from minigpt.generation.engine import run
from minigpt.generation.generate import window_start
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling, gumbel_noise
from minigpt.generation.sequence import Sequence
from minigpt.generation.torch_backend import TorchBackend

LENGTH = 200


def gap(
    backend: TorchBackend, ids: list[int], tokens: tuple[int, int], sampling: Sampling
) -> float:
    """Return the gap between two candidates for the token after `ids`."""
    window = np.array(ids[window_start(len(ids), backend.max_seq_len) :])
    logits = backend.new_cache(1).prefill(0, window, 0)[-1]
    noise = gumbel_noise(sampling.seed, 0, len(ids), len(logits))[0]
    scores = logits / sampling.temperature + noise
    return abs(float(scores[tokens[0]] - scores[tokens[1]]))


def generated_ids(backend: Backend, prompt: str, sampling: Sampling) -> list[int]:
    sequence = Sequence(backend.tokenizer, prompt, sampling, max_new_tokens=LENGTH)
    for _ in run(backend, [sequence]):
        pass
    return sequence.generated


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--text", type=Path, default=Path("data/raw/tales.txt"))
    parser.add_argument(
        "--model", type=Path, default=Path("models/minigpt"), help="path without extension"
    )
    arguments = parser.parse_args()
    ours = TorchBackend.load(arguments.model.with_suffix(".safetensors"))
    ours.ngram_table = None  # ONNX Runtime uses drafts, which must not change the text
    theirs = OnnxBackend(arguments.model.with_suffix(".onnx"))
    text, rng = arguments.text.read_text(encoding="utf-8"), random.Random(0)
    equal = 0
    for seed in range(arguments.prompts):
        start = rng.randrange(len(text))
        prompt = text[start : start + rng.randrange(1, 60)]
        sampling = Sampling(ignore_eos=True, seed=seed)
        a, b = (generated_ids(backend, prompt, sampling) for backend in (ours, theirs))
        if a == b:
            equal += 1
            continue
        at = next(i for i in range(LENGTH) if a[i] != b[i])
        ids = ours.tokenizer.encode(prompt)[:-1] + a[:at]
        distance = gap(ours, ids, (a[at], b[at]), sampling)
        print(f"prompt {seed}: first difference at token {at}, gap {distance:.1e}")
    print(f"{equal} of {arguments.prompts} texts of {LENGTH} tokens are equal")


if __name__ == "__main__":
    main()
