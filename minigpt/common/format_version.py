"""Version of the metadata in model files; without pydantic, for backends that load few packages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt.common.errors import UserError

FORMAT_VERSION = 2  # 1: named "format", without keys that `config.VALUE_BEFORE` adds


def check_format_version(path: Path, metadata: Mapping[str, Any]) -> None:
    """Check that this version of MiniGPT can read the model file at `path`.

    Raises:
        UserError: A newer version of MiniGPT wrote it.
    """
    version = metadata.get("format_version", 1)
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path}: has format version {version}, but this MiniGPT reads versions up to "
            f"{FORMAT_VERSION}; install a newer MiniGPT"
        )
