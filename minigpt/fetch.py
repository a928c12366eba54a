"""Corpora that are not in the repository and can be had by name: `minigpt-cli fetch NAME`."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from minigpt.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """What `fetch` lists: a folder of this name appears in data/raw/."""

    name: str
    description: str
    licence: str


CORPORA = [
    Corpus(
        name="python-docs",
        description="language-reference topics that ship inside every CPython; half a megabyte, no download",
        licence="PSF-2.0",
    )
]


def fetch(name: str, folder: Path) -> Path:
    """Write the corpus `name` into `folder`, whole or not at all; returns where it is.

    Raises:
        UserError: no corpus has this name.
    """
    if name not in (corpus.name for corpus in CORPORA):
        known = ", ".join(corpus.name for corpus in CORPORA)
        raise UserError(f"{name}: no such corpus; known are {known}")
    target = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(dir=folder, prefix=f".{name}."))
    try:
        for topic, text in sorted(topics.items()):
            (workspace / f"{topic}.txt").write_text(text.strip("\n") + "\n", encoding="utf-8")
        workspace.chmod(0o755)  # mkdtemp makes it private
        shutil.rmtree(target, ignore_errors=True)
        os.replace(workspace, target)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return target
