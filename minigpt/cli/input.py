"""Read text from files and standard input."""

import os
import sys
from pathlib import Path
from typing import TextIO

from minigpt.common.errors import UserError

STDIN = Path("-")
BYTE_ORDER_MARK = "\ufeff"  # dropped at the start of a text, as in a corpus


def open_stdin() -> TextIO:
    """Return standard input.

    Raises:
        UserError: The caller closed it.
    """
    if sys.stdin is None:
        raise UserError("standard input: closed; pipe a text into it")
    return sys.stdin


def expand_home(path: Path) -> Path:
    """Replace `~` at the start, which a shell leaves in `--model=~/file`."""
    return Path(os.path.expanduser(path))


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, or of standard input for `STDIN`.

    Raises:
        UserError: The file cannot be read, is a device, or is not UTF-8.
    """
    name = "standard input" if path == STDIN else path
    if path.is_char_device():  # /dev/zero has no end
        raise UserError(f"{name}: a device; name a text file, or - for standard input")
    try:
        text = open_stdin().read() if path == STDIN else expand_home(path).read_text("utf-8")
    except OSError as error:
        raise UserError(
            f"{name}: cannot be read: {error.strerror}; name a readable text file"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text at byte {error.start}; convert it first") from None
    return text.removeprefix(BYTE_ORDER_MARK)
