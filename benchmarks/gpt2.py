"""Peak memory of a training in the size of GPT-2, relative to its weights.

Trains three steps of one row of 128 tokens on random ids, with validations and checkpoints, on the
CPU and in float32.

    python benchmarks/gpt2_memory.py
"""

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from minigpt.common.config import load_params
from minigpt.data.batches import Batches
from minigpt.model.model import MiniGPT
from minigpt.training.resume import ResumeStore
from minigpt.training.train import Trainer

V, TOKENS = 50_260, 128
SIZES = {"d_model": 768, "num_heads": 12, "num_layers": 12, "d_ff": 3072, "max_seq_len": 1024}
GPT2 = {"positional": "learned", "activation": "gelu", "tied_head": True, "head_bias": False}
TRAINING = {"batch_size": 1, "max_steps": 3, "eval_interval": 1, "precision": "float32"}


def peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Print the peak memory, less that after the imports, and the time of a checkpoint."""
    params, before = load_params(), peak()
    torch.manual_seed(0)
    model = MiniGPT(V, params.model.model_copy(update={**SIZES, **GPT2}))
    config = params.train.model_copy(update={**TRAINING, "optimizer": "adamw"})
    ids = np.random.default_rng(0).integers(V, size=8 * TOKENS)
    batches = [Batches(part, "packed", 1, TOKENS) for part in (ids, ids[: 2 * TOKENS])]
    runtime = params.runtime.model_copy(update={"checkpoint_interval": 1})
    with tempfile.TemporaryDirectory() as folder:
        store = ResumeStore(Path(folder), runtime)
        trainer = Trainer(model, *batches, config, store)
        trainer.run()
        used = peak() - before
        start = time.monotonic()
        trainer._save()
        seconds = time.monotonic() - start
    weights = 4 * model.num_parameters
    print(f"weights {weights / 2**20:,.0f} MiB, peak memory {used / 2**20:,.0f} MiB")
    print(f"ratio {used / weights:.2f}; a checkpoint takes {seconds:.1f} s")


if __name__ == "__main__":
    main()
