"""Parameters that were tried in a DVC experiment, as opposed to those that the user chose.

A failed or interrupted experiment leaves its parameters in params.yaml, and DVC keeps no trace of
it. So each stage leaves one: an empty file, named after the parameters.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.common import paths


def params_digest(text: str) -> str:
    """Return a digest of the parameters in `text`, except those that change no output."""
    # of a text that is not YAML, or has keys that are not text, all bytes count
    with contextlib.suppress(YAMLError, TypeError, ValueError):
        values = dict(YAML(typ="safe", pure=True).load(text) or {})
        values.pop("runtime", None)
        text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def mark_try() -> None:
    """Mark the parameters in params.yaml as tried, if a DVC experiment is running."""
    if "DVC_EXP_NAME" in os.environ:
        with contextlib.suppress(Exception):  # no stage may fail for this
            mark = _mark(params_digest(Path("params.yaml").read_text()))
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def was_tried(digest: str) -> bool:
    return _mark(digest).exists()


def _mark(digest: str) -> Path:
    return paths.root() / ".minigpt/tries" / digest
