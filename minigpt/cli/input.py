"""Read text from files and standard input."""

import sys
from pathlib import Path

from minigpt.common.errors import UserError


def read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError(
            f"standard input: not UTF-8 text at byte {error.start}; convert it first"
        ) from None


def read_text(path: Path) -> str:
    if str(path) == "-":
        return read_stdin()
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}; convert it first") from None
