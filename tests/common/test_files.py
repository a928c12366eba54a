import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from minigpt.common.files import atomic_file, atomic_folder, atomic_write, parse_json


def write_file(path: Path, content: str) -> None:
    atomic_write(path, content)


def write_streamed_file(path: Path, content: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(content)


def write_folder(path: Path, content: str) -> None:
    with atomic_folder(path) as folder:
        (folder / "a").write_text(content)
        (folder / "b").write_text(content)


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_text() for file in files}


WRITERS = [write_file, write_streamed_file, write_folder]


@pytest.mark.parametrize("write", WRITERS)
def test_a_write_creates_folders_and_replaces(tmp_path, write):
    path = tmp_path / "some/where"
    for content in ("old", "new"):
        write(path, content)
        assert set(contents(tmp_path).values()) == {content}


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", ["open", "fsync", "rename", "replace", "mkdir"])
def test_any_failing_call_leaves_old_or_new_data(tmp_path, monkeypatch, write, name):
    for failing in range(20):
        folder = tmp_path / str(failing)
        write(folder / "x", "new")
        new = contents(folder)
        write(folder / "x", "old")
        old = contents(folder)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail_once(getattr(os, name), failing))
            try:
                write(folder / "x", "new")
            except OSError as error:
                named = error.filename
            else:
                break  # so few calls were made
        assert named == str(folder / "x")
        assert contents(folder) in (old, new)


def fail_once(function: Callable, number: int) -> Callable:
    """Return `function` as one whose call with this number, from 0, fails."""
    numbers = iter(range(100))

    def wrapper(*args, **kwargs):
        if next(numbers) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("write", WRITERS[1:])
def test_an_error_in_the_block_leaves_the_old_data(tmp_path, monkeypatch, write):
    write(tmp_path / "x", "old")
    before = contents(tmp_path)
    with pytest.raises(UnicodeEncodeError):
        write(tmp_path / "x", "\ud83d")
    assert contents(tmp_path) == before


def test_json_nested_too_deeply_is_a_value_error():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)
