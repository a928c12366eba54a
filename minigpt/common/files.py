"""Atomic writes of files and folders, file digests, and errors of files.

Everything that MiniGPT writes goes through this module: data is written under a temporary name
beside its place, and renamed when it is complete. A crash, a kill or a full disk leaves the old
data.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt.common.errors import UserError, one_line


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` to `path`, text as UTF-8."""
    with atomic_file(path) as temporary, temporary.open("xb") as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write, which becomes `path` at the end of the block."""
    temporary = _temporary(path)
    try:
        with name_errors(path, temporary):
            yield temporary
            _make_durable(temporary)
            temporary.replace(path)
            _make_durable(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill with files, which becomes `path` at the end of the block."""
    temporary, old = _temporary(path), _temporary(path)
    try:
        with name_errors(path, temporary, old):
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                _make_durable(file)
            _make_durable(temporary)
            _replace_folder(path, temporary, old)
            _make_durable(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(path: Path, new: Path, old: Path) -> None:
    """Rename `new` to `path`; a rename replaces no folder, so the old one is moved to `old`."""
    try:
        with contextlib.suppress(FileNotFoundError):
            path.rename(old)
        new.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """Return a new path beside `path`, hidden; make the parent folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}")


def _make_durable(path: Path) -> None:
    """Wait until the disk has the content of a file, or the names in a folder."""
    windows = os.name == "nt"  # needs the right to write, and has no such call for folders
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def name_errors(path: Path, *temporaries: Path) -> Iterator[None]:
    """Set `path` as the file of each `OSError` that names no file, or is in `temporaries`."""
    try:
        yield
    except OSError as error:
        if error.filename is None or any(map(Path(error.filename).is_relative_to, temporaries)):
            error.filename, error.filename2 = os.fspath(path), None
        raise


def file_digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file, by "sha256" or, as DVC does, by "md5"."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text of unknown origin.

    Raises:
        ValueError: The text is not JSON, or is nested deeper than Python can parse.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


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
        raise UserError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None
