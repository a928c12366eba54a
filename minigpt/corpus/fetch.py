"""Corpora that are not in the repository and can be had by name: `minigpt-cli fetch NAME`.

A download is pinned: its size and SHA-256 stand in the table below, and nothing else is ever kept.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import IncompleteRead, responses
from pathlib import Path
from pydoc_data.topics import topics
from typing import NoReturn

import requests
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from minigpt.common.errors import UserError

TIMEOUT = 20.0  # seconds to wait for a connection, and then for each next piece
MAX_REDIRECTS = 5
CHUNK = 16 * 1024  # bytes; what a broken connection loses at most


@dataclass(frozen=True)
class Corpus:
    """What `fetch` lists. `size` is in bytes; that of python-docs differs a little between versions of Python."""

    name: str
    description: str
    licence: str
    size: int


@dataclass(frozen=True)
class Download(Corpus):
    """A text file of exactly `size` bytes, which becomes NAME.txt."""

    url: str
    sha256: str


CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        Download(
            name="tinyshakespeare",
            description="scenes from Shakespeare's plays, a blank line between two speeches",
            licence="public domain",
            size=1_115_394,
            url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
        Download(
            name="names",
            description="first names in the United States, one a line",
            licence="MIT",
            size=228_145,
            url="https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",
            sha256="0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
        ),
        Corpus(
            name="python-docs",
            description="language-reference topics that ship inside every CPython; a folder, no download",
            licence="PSF-2.0",
            size=466_000,
        ),
    )
}


def listing() -> str:
    """The corpora as a table with aligned columns, a line each."""
    rows = [("NAME", "SIZE", "LICENCE", "WHAT IT IS")]
    rows += [(c.name, f"{c.size / 1e6:.1f} MB", c.licence, c.description) for c in CORPORA.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def fetch(name: str, folder: Path) -> Path:
    """Put the corpus `name` into `folder`, whole or not at all; returns where it is.

    Raises:
        UserError: no corpus has this name, the folder cannot be written, or the download fails.
    """
    if name not in CORPORA:
        raise UserError(f"{name}: no such corpus; known are {', '.join(CORPORA)}")
    corpus = CORPORA[name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(corpus, Download):
            return download(corpus, folder)
        return _write_python_docs(folder / name)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{error.filename or folder}: {reason}; mend that and run the command again"
        ) from None


def download(corpus: Download, folder: Path) -> Path:
    """Download a corpus to NAME.txt in `folder`, which must exist; returns that path.

    Makes no request if the right file is there; a wrong one stays until the right one is complete. What
    a broken connection leaves is NAME.txt.part, and the next call goes on from its end.

    Raises:
        UserError: the server cannot be reached, fails, stalls or sends something else (of which nothing
            is kept), or another process downloads the same.
        OSError: the file cannot be written.
    """
    target = folder / f"{corpus.name}.txt"
    part = folder / f"{corpus.name}.txt.part"
    if _is_right(target, corpus):
        print(f"{corpus.name}: already here", file=sys.stderr)
        return target
    with _alone(target):
        _receive(corpus, part)
        if not _is_right(part, corpus):
            _refuse(corpus, part, "not the text that is expected: its SHA-256 is another")
        os.replace(part, target)
    print(f"{corpus.name}: {corpus.size:,} bytes from {corpus.url}, checked", file=sys.stderr)
    return target


def _is_right(file: Path, corpus: Download) -> bool:
    if not file.is_file() or file.stat().st_size != corpus.size:
        return False
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == corpus.sha256


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold a lock: of two processes that append to one .part file, one could spoil what the other has checked."""
    lock = target.with_name(f"{target.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                with suppress(OSError):  # Windows removes no file that is open
                    lock.unlink()
    except Timeout:
        raise UserError(
            f"{target}: another process is downloading it; wait until it has finished"
        ) from None


def _receive(corpus: Download, part: Path) -> None:
    """Fill `part` up to the size of the corpus, going on from what it holds."""
    done = part.stat().st_size if part.exists() else 0
    if done >= corpus.size:
        done = 0  # no piece of the file, or a whole one that nobody has checked
    headers = {"Accept-Encoding": "identity"}  # sizes and ranges count the bytes of the file itself
    if done:
        headers["Range"] = f"bytes={done}-"
    try:
        with requests.Session() as session:
            session.max_redirects = MAX_REDIRECTS
            with session.get(corpus.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
                _write(response, corpus, part, done)
    except requests.TooManyRedirects:
        raise UserError(
            f"{corpus.url}: more than {MAX_REDIRECTS} redirects; try again later"
        ) from None
    except requests.RequestException as error:
        _broken_off(corpus, part, _reason(error))


def _write(response: requests.Response, corpus: Download, part: Path, done: int) -> None:
    """Append the body of the response to `part`, of which `done` bytes were asked to be left out."""
    if (
        response.status_code == 416
    ):  # nothing lies behind what is here, so the file has become shorter
        _refuse(corpus, part, f"ends before byte {done:,} of {corpus.size:,}")
    if response.status_code not in (200, 206):
        status = f"{response.status_code} {responses.get(response.status_code, '')}".rstrip()
        raise UserError(
            f"{corpus.url}: the server answers {status}; try again later, or with a newer MiniGPT"
        )
    if response.status_code == 200:
        done = 0  # the server knows no ranges, and sends it all
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and done + int(length) != corpus.size:
        _refuse(corpus, part, f"has {done + int(length):,} bytes, and not {corpus.size:,}")

    columns = (
        TextColumn(corpus.name),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(corpus.name, total=corpus.size, completed=done)
    with part.open("ab" if done else "wb") as file, bar:
        for chunk in response.iter_content(CHUNK):
            file.write(chunk)
            done += len(chunk)
            bar.update(task, completed=done)
            if done > corpus.size:
                break  # it may have no end
        file.flush()
        os.fsync(file.fileno())
    if done > corpus.size:
        _refuse(corpus, part, f"has more than {corpus.size:,} bytes")
    if done < corpus.size:
        _broken_off(corpus, part, "the connection was closed")


def _refuse(corpus: Download, part: Path, what: str) -> NoReturn:
    """Keep nothing of a wrong file."""
    part.unlink(missing_ok=True)
    raise UserError(
        f"{corpus.url}: {what}; nothing is kept, try again later, or with a newer MiniGPT"
    )


def _broken_off(corpus: Download, part: Path, reason: str) -> NoReturn:
    """Keep what has come."""
    done = part.stat().st_size if part.exists() else 0
    advice = "check the network and run the command again"
    if done:
        advice = (
            f"{done:,} of {corpus.size:,} bytes are here: run the command again to go on from there"
        )
    raise UserError(f"{corpus.url}: {reason}; {advice}")


def _reason(error: BaseException) -> str:
    """What the system said, in few words; the layers above tell it in many."""
    while error.__context__:
        error = error.__context__
    if isinstance(error, TimeoutError):
        return f"nothing came for {TIMEOUT:g} s"
    if isinstance(error, IncompleteRead):
        return "the connection was closed"
    return getattr(error, "strerror", None) or str(error)


def _write_python_docs(target: Path) -> Path:
    workspace = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        for topic, text in sorted(topics.items()):
            (workspace / f"{topic}.txt").write_text(text.strip("\n") + "\n", encoding="utf-8")
        workspace.chmod(0o755)  # mkdtemp makes it private
        shutil.rmtree(target, ignore_errors=True)
        os.replace(workspace, target)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return target
