"""Training speed and loss of MiniGPT and of GPT-2 from `transformers`, called the peer.

Tiny Shakespeare, one thread, models of one size (128 channels, d_ff 512, context length 64). The
peer has nanoGPT's settings for CPUs and the usual PyTorch loop. Both sides train alternately in
one process. Evaluation covers the whole validation split in blocks of 64 and is not timed. Times
are CPU seconds, since they depend least on other processes.

    python benchmarks/training.py speed           tokens per second: recipes and peer
    python benchmarks/training.py loss            validation loss and time: peer, classic, fast
    python benchmarks/training.py ablation        fast without one of its methods at a time
    python benchmarks/training.py minutes         fast for ten minutes on all cores
    python benchmarks/training.py share           matrix products: share of the processor's speed
"""

import argparse
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from ruamel.yaml import YAML

from minigpt.common.config import ModelConfig, TrainConfig
from minigpt.data.batches import Batches
from minigpt.model.loss import sum_loss
from minigpt.model.model import MiniGPT
from minigpt.training.train import Trainer

ROOT = Path(__file__).parent.parent
CONTEXT = 64
PEER_STEPS, PEER_BATCH = 2000, 12
FAST_BATCH = 24


def read_ids(path: Path, split: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Return training ids, validation ids, and the vocabulary size.

    The last tenth of the text validates. For the choice of hyperparameters ("tune"), the tenth
    before it validates, and the last is not used.
    """
    text = path.read_text(encoding="utf-8")
    characters = sorted(set(text))
    ids = (
        4
        + np.array([characters.index(c) for c in characters])[
            np.searchsorted(characters, list(text))
        ]
    )
    begin, end = (0.8, 0.9) if split == "tune" else (0.9, 1.0)
    n = len(ids)
    return ids[: int(begin * n)], ids[int(begin * n) : int(end * n)], 4 + len(characters)


def recipe(name: str, **changes) -> tuple[ModelConfig, TrainConfig]:
    """Return params.yaml with the overrides of a recipe and `changes`, for the context of 64."""
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load(ROOT / "params.yaml")
    for line in (ROOT / "recipes" / name).read_text().split():
        key, value = line.split("=")
        section, key = key.split(".")
        params[section][key] = yaml.load(value)
    params["model"]["max_seq_len"] = CONTEXT
    params["train"] |= {"log_interval": 10**9, "eval_interval": 10**9}
    for key, value in changes.items():
        params["model" if key in params["model"] else "train"][key] = value
    return ModelConfig(**params["model"]), TrainConfig(**params["train"])


def train(data, model_config: ModelConfig, config: TrainConfig) -> tuple[float, float, MiniGPT]:
    """Return the CPU seconds of the training, the validation loss and the model."""
    train_ids, val_ids, vocab_size = data
    torch.manual_seed(config.seed)
    model = MiniGPT(vocab_size, model_config)
    batches = Batches(train_ids, "packed", config.batch_size, CONTEXT, config.seed)
    trainer = Trainer(model, batches, Batches(val_ids, "packed", 64, CONTEXT), config)
    began = time.process_time()
    seconds = []
    progress = trainer.run(lambda row: seconds.append(time.process_time() - began))
    return seconds[0], progress.best_val_loss, model  # the first report precedes evaluation


class Peer:
    """GPT-2 with nanoGPT's training recipe for CPUs: 2,000 steps, 1e-3 → 1e-4, β₂ 0.99."""

    def __init__(self, data, seed: int):
        import transformers

        self.data, self.step, self.rng = data, 0, np.random.default_rng(seed)
        torch.manual_seed(seed)
        sizes = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_inner": 512, "n_positions": CONTEXT}
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        self.model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=data[2], **sizes, **dropout)
        )
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, use_cache=False).logits

    def train(self, steps: int) -> float:
        """Train for `steps` and return the CPU seconds."""
        began = time.process_time()
        self.model.train()
        for _ in range(steps):
            progress = max(0.0, (self.step - 100) / (PEER_STEPS - 100))
            rate = 1e-4 + 0.5 * (1 + math.cos(math.pi * progress)) * 9e-4
            for group in self.optimizer.param_groups:
                group["lr"] = rate * min(1, (self.step + 1) / 101)
            starts = self.rng.integers(len(self.data[0]) - CONTEXT, size=PEER_BATCH)
            rows = torch.from_numpy(np.stack([self.data[0][i : i + CONTEXT + 1] for i in starts]))
            loss = F.cross_entropy(self.logits(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
        return time.process_time() - began

    def val_loss(self) -> float:
        class Logits(torch.nn.Module):
            def __init__(self, peer):
                super().__init__()
                self.model, self.forward = peer.model, peer.logits

        total, count = sum_loss(Logits(self), Batches(self.data[1], "packed", 64, CONTEXT))
        return total / count


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def compare_speed(data, args) -> None:
    """Train both sides alternately for 20 steps, with equal batches of 12 × 64."""
    steps = 20
    changes = {"max_steps": steps, "batch_size": PEER_BATCH}
    sides = {
        "classic": recipe("classic", **changes),
        "classic, float32": recipe("classic", precision="float32", **changes),
        "fast": recipe("fast", **changes),
    }
    times = {name: [] for name in ("peer", *sides)}
    peer = Peer(data, 0)
    peer.train(3)
    for _ in range(args.rounds):
        times["peer"].append(peer.train(steps))
        for name, configs in sides.items():
            times[name].append(train((data[0], data[1][:999], data[2]), *configs)[0])
    for name, values in times.items():
        ratio = statistics.median(p / t for p, t in zip(times["peer"], values, strict=True))
        speed = steps * PEER_BATCH * CONTEXT / statistics.median(values)
        print(f"{name:16} {speed:8,.0f} tokens/s   ×{ratio:.2f} of the peer's")


def compare_loss(data, args) -> None:
    rows = []
    for seed in range(args.seeds):
        peer = Peer(data, seed)
        seconds = peer.train(PEER_STEPS)
        rows.append(("peer", seed, seconds, peer.val_loss(), seconds))
        show(rows[-1], parameters(peer.model))
        runs = {
            "classic, same tokens": recipe(
                "classic", max_steps=PEER_STEPS, batch_size=PEER_BATCH, seed=seed
            ),
            "fast, same loss": recipe(
                "fast", seed=seed, batch_size=args.batch, max_steps=args.short
            ),
            "fast, same time": recipe(
                "fast", seed=seed, batch_size=args.batch, max_steps=args.long
            ),
        }
        for name, configs in runs.items():
            spent, loss, model = train(data, *configs)
            rows.append((name, seed, spent, loss, seconds))
            show(rows[-1], parameters(model))
    print("\nmedians")
    for name in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == name]
        loss, ratio = (
            statistics.median(values)
            for values in zip(*((r[3], r[4] / r[2]) for r in mine), strict=True)
        )
        print(f"{name:22} validation loss {loss:.4f}   peer's time / its time {ratio:.2f}")


def show(row: tuple, parameters: int) -> None:
    name, seed, seconds, loss, _ = row
    print(
        f"{name:22} seed {seed}   {parameters:,} parameters   {seconds:6.1f} s   loss {loss:.4f}",
        flush=True,
    )


ABLATION_STEPS = 300
ABLATIONS = {
    "nothing": {},
    "sinusoidal positions": {"positional": "sinusoidal"},
    "no query/key norm": {"qk_norm": False},
    "no n-gram embeddings": {"bigram_buckets": 0, "trigram_buckets": 0},
    "pairs only": {"bigram_buckets": 3500, "trigram_buckets": 0},
    "AdamW": {"optimizer": "adamw", "learning_rate": 5e-3},
    "cosine schedule": {"schedule": "cosine"},
    "float32": {"precision": "float32"},
}


def ablate(data, args) -> None:
    print("change: loss (median of seeds), CPU seconds")
    for name, changes in ABLATIONS.items():
        results = [
            train(
                data,
                *recipe(
                    "fast", seed=seed, batch_size=args.batch, max_steps=ABLATION_STEPS, **changes
                ),
            )[:2]
            for seed in range(args.seeds)
        ]
        seconds, loss = (statistics.median(values) for values in zip(*results, strict=True))
        print(f"{name:22} {loss:.4f}   {seconds:5.1f} s", flush=True)


def measure_share(data, args) -> None:
    """Compare matrix products in training with large square ones, in operations per second."""
    peaks = {
        dtype: max(product_speed(n, dtype) for n in (512, 1024, 2048))
        for dtype in (torch.float32, torch.bfloat16)
    }
    for dtype, peak in peaks.items():
        print(f"square products in {str(dtype).removeprefix('torch.')}: {peak / 1e9:.0f} GFLOP/s")
    for name in ("classic", "fast"):
        for precision in ("float32", "bfloat16"):
            changes = {
                "max_steps": 40,
                "batch_size": 24,
                "precision": precision,
            }
            model_config, config = recipe(name, **changes)
            seconds, _, model = train((data[0], data[1][:999], data[2]), model_config, config)
            matrices = (
                sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
                + model.head.weight.numel()
            )
            # per token and weight: 2 operations in the forward pass, 4 in the backward pass; the
            # same for the products with keys and values
            per_token = 6 * (
                matrices + 2 * model_config.num_layers * model_config.d_model * CONTEXT
            )
            speed = per_token * config.max_steps * config.batch_size * CONTEXT / seconds
            shares = ", ".join(
                f"{speed / peak:.0%} of {str(d).removeprefix('torch.')}"
                for d, peak in peaks.items()
            )
            print(f"{name:8} {precision:9} {speed / 1e9:5.0f} GFLOP/s: {shares}")


def product_speed(n: int, dtype: torch.dtype) -> float:
    a, b = (torch.randn(n, n, dtype=dtype) for _ in range(2))
    a @ b
    times = []
    for _ in range(9):
        began = time.process_time()
        a @ b
        times.append(time.process_time() - began)
    return 2 * n**3 / min(times)


def train_for_minutes(data, args) -> None:
    """Print the validation loss by wall time, evaluated at the context length of the model."""
    torch.set_num_threads(args.threads)
    sizes = {"d_model": 256, "num_heads": 8, "num_layers": 3, "d_ff": 1024, "max_seq_len": 128}
    model_config, config = recipe(
        "fast", **sizes, batch_size=16, eval_interval=args.long // 10, max_steps=args.long
    )
    torch.manual_seed(config.seed)
    model = MiniGPT(data[2], model_config)
    layout = ("packed", config.batch_size, model_config.max_seq_len)
    val_batches = Batches(data[1], "packed", 64, model_config.max_seq_len)
    trainer = Trainer(model, Batches(data[0], *layout, config.seed), val_batches, config)
    print(f"{parameters(model):,} parameters")
    clock = time.monotonic()

    def report(row) -> None:
        if "val/loss" in row:
            minutes = (time.monotonic() - clock) / 60
            print(
                f"{minutes:5.1f} minutes   step {row['step']:5}   loss {row['val/loss']:.4f}",
                flush=True,
            )

    trainer.run(report)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=["speed", "loss", "ablation", "minutes", "share"])
    parser.add_argument("--data", type=Path, default=ROOT / "data/raw/tinyshakespeare.txt")
    parser.add_argument("--split", choices=["tune", "report"], default="report")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="for `minutes`; the other benchmarks use one",
    )
    parser.add_argument("--batch", type=int, default=FAST_BATCH)
    parser.add_argument(
        "--short", type=int, default=80, help="steps of fast to reach the peer's loss"
    )
    parser.add_argument("--long", type=int, default=4000, help="steps of fast in the peer's time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = read_ids(args.data, args.split)
    {
        "speed": compare_speed,
        "loss": compare_loss,
        "ablation": ablate,
        "minutes": train_for_minutes,
        "share": measure_share,
    }[args.benchmark](data, args)


if __name__ == "__main__":
    main()
