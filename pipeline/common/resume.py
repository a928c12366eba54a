"""Where an interrupted training left its states, and whether they are of this very training."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from minigpt.common.config import Params
from minigpt.common.files import atomic_write, file_digest
from minigpt.data.token_files import Tokens
from minigpt.training.distributed import Group
from minigpt.training.resume import ResumeStore
from minigpt.training.train import use_bfloat16
from pipeline.common import paths

log = logging.getLogger(__name__)
HARMLESS = {"checkpoint_interval", "checkpoint_seconds"}  # parameters that change no result


@contextlib.contextmanager
def resume_store(
    params: Params, tokens: Tokens, device: torch.device, group: Group
) -> Iterator[ResumeStore]:
    """The states of this training, held against any other process that trains the very same."""
    facts = _facts(params, tokens, device, group)
    folder = (
        paths.root()
        / ".minigpt"
        / "checkpoints"
        / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    )
    store = ResumeStore(folder)
    if group.rank > 0:
        group.wait()
        yield store
        return
    with _alone(folder):
        group.wait()  # now the states are at rest
        note = folder / "facts.json"
        if not note.exists():
            _tell_what_differs(folder.parent, facts)
            atomic_write(note, json.dumps(facts, indent=1).encode())
        yield store
        note.unlink()
        store.clear()  # the training is done


def _facts(params: Params, tokens: Tokens, device: torch.device, group: Group) -> dict[str, Any]:
    """What the result depends on, to the bit: where a fact changes, it is another training."""
    init_from = Path(params.train.init_from or "")
    return {
        **{f"model.{key}": value for key, value in params.model.model_dump().items()},
        **{
            f"train.{key}": value
            for key, value in params.train.model_dump(exclude=HARMLESS).items()
        },
        "pretrained model": file_digest(init_from, "sha256") if init_from.is_file() else None,
        "data": tokens.sha256(),
        "code": paths.code_sha256("train"),
        "libraries": f"torch {torch.__version__}, numpy {np.__version__}",
        "processor": torch.cuda.get_device_name()
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "bfloat16": use_bfloat16(params.train, device),
        "threads": torch.get_num_threads(),
        "processes": group.size,
    }


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.warning("another process trains this very model; waiting for it (%s)", lock.lock_file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.with_suffix(".lock"))


def _tell_what_differs(folder: Path, facts: dict[str, Any]) -> None:
    """Where another training lies unfinished, say why it is not gone on with."""
    # another process is at it, or has just finished it; or the note is damaged
    with contextlib.suppress(Timeout, FileNotFoundError, ValueError):
        notes = [note for note in folder.glob("*/facts.json") if any(note.parent.glob("step-*"))]
        if not notes:
            return
        note = max(notes, key=lambda note: note.stat().st_mtime)
        with _lock(note.parent).acquire(blocking=False):
            theirs = json.loads(note.read_text())
            differing = [name for name in facts if facts[name] != theirs.get(name)]
            log.info("starting afresh: the unfinished training differs in %s", ", ".join(differing))
