"""Atomic file writes, file digests, and errors of reading files."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from minigpt.common.errors import UserError


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path`; after a crash or on a full disk, the old file is unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # makes the rename durable; Windows neither has nor needs this call
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def file_digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file, by "sha256" or, as DVC does, by "md5"."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def read_errors(path: Path, advice: str) -> Iterator[None]:
    """Turn an error of opening or reading `path` into a `UserError`.

    Args:
        path: File or folder that is read.
        advice: What to do if it does not exist.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: not found; {advice}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
