"""The pipeline in the size of GPT-2 (124 million parameters, random weights): memory and times.

    python benchmarks/gpt2.py memory
    python benchmarks/gpt2.py memory --activation-checkpointing
    python benchmarks/gpt2.py files

memory  peak memory of three training steps of one row, relative to the weights, with validations
        and checkpoints, on the CPU in float32
files   times of the ONNX export with its parity check, of int8, and of the start of `generate`
        from both files
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minigpt.common.config import load_params
from minigpt.data.batches import Batches
from minigpt.export.checks import check_batches, opened
from minigpt.export.export import export
from minigpt.export.onnx_graph import to_onnx
from minigpt.model.model import MiniGPT
from minigpt.tokenizer import CharTokenizer
from minigpt.training.resume import ResumeStore
from minigpt.training.train import Trainer

GPT2 = {
    **{"d_model": 768, "num_heads": 12, "num_layers": 12, "d_ff": 3072, "max_seq_len": 1024},
    **{"positional": "learned", "activation": "gelu", "tied_head": True, "head_bias": False},
}
# as many tokens as GPT-2 has, and the special tokens
TOKENIZER = CharTokenizer(map(chr, range(0x10000, 0x10000 + 50_256)))
TRAINING = {"batch_size": 1, "max_steps": 3, "eval_interval": 1, "precision": "float32"}
ROUNDS = 5


def peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def build() -> MiniGPT:
    torch.manual_seed(0)
    return MiniGPT(TOKENIZER.vocab_size, load_params().model.model_copy(update=GPT2))


class TimedStore(ResumeStore):
    """Keeps the time of the latest save."""

    def save(self, *values: Any) -> None:
        start = time.monotonic()
        super().save(*values)
        self.seconds = time.monotonic() - start


def measure_memory(tokens: int, checkpointing: bool) -> None:
    """Print the peak memory, less that after the imports, and the time of a checkpoint."""
    params, before = load_params(), peak()
    model = build()
    changes = {**TRAINING, "optimizer": "adamw", "activation_checkpointing": checkpointing}
    config = params.train.model_copy(update=changes)
    ids = np.random.default_rng(0).integers(TOKENIZER.vocab_size, size=8 * tokens)
    batches = [Batches(part, "packed", 1, tokens) for part in (ids, ids[: 2 * tokens])]
    runtime = params.runtime.model_copy(update={"checkpoint_interval": 1})
    with tempfile.TemporaryDirectory() as folder:
        store = TimedStore(Path(folder), runtime)
        trainer = Trainer(model, *batches, config, store)
        start = time.monotonic()
        trainer.run()
        training = time.monotonic() - start
        used = peak() - before
    weights = 4 * model.num_parameters
    print(f"weights {weights / 2**20:,.0f} MiB, peak memory {used / 2**20:,.0f} MiB")
    print(f"ratio {used / weights:.2f}; training {training:.1f} s")
    print(f"a checkpoint takes {store.seconds:.1f} s")


def measure_files(threads: int) -> None:
    """Print the times of exports, and from the start of a process to its first text."""
    model = build().eval()
    config = {"vocab_size": TOKENIZER.vocab_size, **model.config.model_dump()}
    metadata = {"config": config, "tokenizer": TOKENIZER.to_dict()}
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("float32", "int8")}
        start = time.monotonic()
        data, facts = export(model, metadata, 1e-3, threads)
        print(f"export and parity: {time.monotonic() - start:.1f} s", end="")
        print(f", largest difference of logits {facts['max_logit_difference']:.1e}")
        files["float32"].write_bytes(data)
        start = time.monotonic()
        data = to_onnx(model, metadata, quantize="int8")
        print(f"int8: {time.monotonic() - start:.1f} s", end="")
        with opened(data, threads) as quantized:
            check_batches(quantized)
        print(f", with the check of batches {time.monotonic() - start:.1f} s")
        files["int8"].write_bytes(data)
        for name, path in files.items():
            times = sorted(seconds_to_first_text(path) for _ in range(ROUNDS))
            size = path.stat().st_size / 1e6
            print(f"first text of {name} ({size:.0f} MB): {times[ROUNDS // 2]:.2f} s")


def seconds_to_first_text(path: Path) -> float:
    command = [sys.executable, "-m", "minigpt.cli", "generate", "--model", str(path), "-p", ""]
    start = time.perf_counter()
    with subprocess.Popen([*command, "--ignore-eos"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.terminate()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["memory", "files"])
    parser.add_argument("--tokens", type=int, default=128, help="of the row, for memory")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--threads", type=int, default=2, help="for files")
    arguments = parser.parse_args()
    if arguments.part == "memory":
        measure_memory(arguments.tokens, arguments.activation_checkpointing)
    else:
        measure_files(arguments.threads)


if __name__ == "__main__":
    main()
