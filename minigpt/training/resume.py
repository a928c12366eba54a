"""Resuming: checkpoints of an interrupted training, and the facts that identify the training."""

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import nn

from minigpt.common.config import Params, RuntimeConfig
from minigpt.common.files import atomic_write, file_digest, parse_json
from minigpt.data.token_files import Tokens
from minigpt.model.checkpoint import DamagedFileError, Tensors, load, save
from minigpt.training.best_weights import BestWeights
from minigpt.training.device import use_bfloat16
from minigpt.training.distributed import Group

log = logging.getLogger(__name__)


def pack_state(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], others: Tensors
) -> Tensors:
    """Flatten model, optimizer state and `others` into one dict."""
    parts = {"other": others, "model": model.state_dict()}
    for number, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            parts[f"optimizer.{number}.{index}"] = values
    return {f"{part}.{name}": value for part in parts for name, value in parts[part].items()}


def unpack_state(
    tensors: Tensors, model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> Tensors:
    """Restore `model` and `optimizers` from `pack_state`'s dict; return `others`."""

    def part(prefix: str) -> Tensors:
        names = [name for name in tensors if name.startswith(prefix)]
        return {name.removeprefix(prefix): tensors[name] for name in names}

    model.load_state_dict(part("model."))
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        for key, value in part(f"optimizer.{number}.").items():
            index, name = key.split(".")
            state["state"].setdefault(int(index), {})[name] = value
        optimizer.load_state_dict(state)
    return part("other.")


class ResumeStore:
    """Folder with the newest two checkpoints of one training, and the best weights of each."""

    def __init__(self, folder: Path, config: RuntimeConfig):
        self.folder, self.config, self.best = folder, config, BestWeights(folder)
        self._saved_at = time.monotonic()
        self._damaged: list[Path] = []

    def is_due(self, step: int) -> bool:
        """Return whether to save a checkpoint after `step` steps."""
        seconds = self.config.checkpoint_seconds
        late = seconds is not None and time.monotonic() - self._saved_at >= seconds
        return late or step % self.config.checkpoint_interval == 0

    def save(self, step: int, tensors: Tensors, metadata: dict[str, Any]) -> None:
        self._saved_at = time.monotonic()
        for file in self._damaged:  # one of a later step would count as the newest
            file.unlink(missing_ok=True)
        save(self.folder / f"step-{step:09d}.safetensors", tensors, metadata)
        files = self._files()
        for old in files[2:]:
            old.unlink()
        if len(files) > 1:
            self.best.drop_older(_step(files[1]))

    def load(self) -> tuple[Tensors, dict[str, Any]] | None:
        """Return the newest undamaged checkpoint, or None if there is none."""
        for file in self._files():
            try:
                tensors, metadata = load(file)
                if not self.best.exist(metadata["progress"]["best_step"]):
                    raise DamagedFileError(f"{file}: without its best weights")
            except DamagedFileError as error:
                log.warning("%s; trying the checkpoint before it", error)
                self._damaged.append(file)
            else:
                self.best.drop_newer(_step(file))
                return tensors, metadata
        self.best.drop_newer(-1)
        return None

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))


@contextlib.contextmanager
def resume_store(
    root: Path, facts: dict[str, Any], config: RuntimeConfig, group: Group
) -> Iterator[ResumeStore]:
    """Lock the checkpoints of the training with these `facts` in `root`; delete them at the end."""
    folder = root / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    store = ResumeStore(folder, config)
    if group.rank > 0:
        group.wait()
        yield store
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        log.warning("another process trains this model; waiting for it (%s)", lock.lock_file)
        held = lock.acquire()
    with held:
        group.wait()  # the other ranks read checkpoints only after rank 0 holds the lock
        facts_file = folder / "facts.json"
        if not facts_file.exists():
            _log_differing_facts(root, facts)
            atomic_write(facts_file, json.dumps(facts, indent=1).encode())
        yield store
        shutil.rmtree(folder, ignore_errors=True)


def training_facts(
    params: Params, tokens: Tokens, device: torch.device, group: Group, code_sha256: str
) -> dict[str, Any]:
    """Return everything that the trained weights depend on, to the bit.

    A checkpoint is resumed only by a training with the same facts.
    """
    init_from = Path(params.train.init_from)
    return {
        **{f"model.{key}": value for key, value in params.model.model_dump().items()},
        **{f"train.{key}": value for key, value in params.train.model_dump().items()},
        "pretrained model": file_digest(init_from, "sha256") if init_from.is_file() else None,
        "data": tokens.sha256(),
        "code": code_sha256,
        "libraries": f"torch {torch.__version__}, numpy {np.__version__}",
        "processor": torch.cuda.get_device_name()
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "bfloat16": use_bfloat16(params.train, device),
        "threads": torch.get_num_threads(),
        "processes": group.size,
    }


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.with_suffix(".lock"))


def _log_differing_facts(root: Path, facts: dict[str, Any]) -> None:
    """Log why the latest unfinished training in `root`, if any, cannot be resumed."""
    unfinished = [file for file in root.glob("*/facts.json") if any(file.parent.glob("step-*"))]
    # nothing is unfinished, another process trains or has just finished, or the file is damaged
    with contextlib.suppress(ValueError, Timeout, FileNotFoundError):
        latest = max(unfinished, key=lambda file: file.stat().st_mtime)
        with _lock(latest.parent).acquire(blocking=False):
            others = parse_json(latest.read_bytes())
            differing = ", ".join(name for name in facts if facts[name] != others.get(name))
            log.info("starting from step 0: the unfinished training differs in %s", differing)
