"""Corpora that are not in the repository but available by name: `minigpt-cli fetch NAME`.

A download is pinned to its SHA-256 in the table below; a file with another content is never kept.
"""

import sys
from dataclasses import dataclass
from http.client import IncompleteRead
from pathlib import Path
from pydoc_data.topics import topics

from minigpt.common.errors import UserError
from minigpt.common.files import atomic_folder

TIMEOUT = 20.0  # seconds to wait for a connection, and for each next chunk of data


@dataclass(frozen=True)
class NamedCorpus:
    """A text file to download to NAME.txt, or without `url` a folder NAME to create.

    Attributes:
        size: Bytes; those of python-docs differ slightly between Python versions.
    """

    name: str
    description: str
    license: str
    size: int
    url: str = ""
    sha256: str = ""


CORPORA = {
    corpus.name: corpus
    for corpus in (
        NamedCorpus(
            name="tinyshakespeare",
            description="scenes from Shakespeare's plays, speeches separated by blank lines",
            license="public domain",
            size=1_115_394,
            url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
        NamedCorpus(
            name="names",
            description="first names in the United States, one per line",
            license="MIT",
            size=228_145,
            url="https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",
            sha256="0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
        ),
        NamedCorpus(
            name="python-docs",
            description="language reference topics that ship with CPython; a folder, no download",
            license="PSF-2.0",
            size=466_000,
        ),
    )
}


def listing() -> str:
    """Return the corpora as a table with aligned columns, one line each."""
    rows = [("NAME", "SIZE", "LICENSE", "DESCRIPTION")]
    rows += [(c.name, f"{c.size / 1e6:.1f} MB", c.license, c.description) for c in CORPORA.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def fetch(name: str, folder: Path) -> Path:
    """Create the corpus `name` in `folder`, completely or not at all, and return its path.

    Raises:
        UserError: No corpus has this name, the folder cannot be written, or the download fails.
    """
    if name not in CORPORA:
        raise UserError(f"{name}: no such corpus; choose from {', '.join(CORPORA)}")
    corpus = CORPORA[name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return download(corpus, folder) if corpus.url else _write_python_docs(folder / name)
    except OSError as error:
        where, reason = error.filename or folder, error.strerror or error
        raise UserError(f"{where}: {reason}; fix it and run the command again") from None


def download(corpus: NamedCorpus, folder: Path) -> Path:
    """Download a corpus to NAME.txt in `folder` unless it is there, and return its path.

    Another file of this name is replaced only once the download is complete and verified.

    Raises:
        UserError: The server cannot be reached, fails, stalls or sends something else.
        OSError: The file cannot be written.
    """
    # imported here: the list of corpora needs neither
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    receive = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT)
    target = folder / f"{corpus.name}.txt"
    try:
        pooch.retrieve(
            corpus.url,
            known_hash=f"sha256:{corpus.sha256}",
            fname=target.name,
            path=folder,
            downloader=receive,
        )
    except requests.RequestException as error:
        raise UserError(f"{corpus.url}: {_reason(error)}; try again later") from None
    except ValueError:
        raise UserError(
            f"{corpus.url}: the file has changed: its SHA-256 is not {corpus.sha256}; nothing was "
            "kept, update MiniGPT"
        ) from None
    target.chmod(0o644)  # pooch downloads into a private temporary file
    return target


def _reason(error: BaseException) -> str:
    """Return the innermost cause of a network error, in a few words."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server responded {error.response.status_code} {error.response.reason}"
    while error.__context__:
        error = error.__context__
    if isinstance(error, TimeoutError):
        return f"no data received for {TIMEOUT:g} s"
    if isinstance(error, IncompleteRead):
        return "the connection was closed"
    return getattr(error, "strerror", None) or str(error)


def _write_python_docs(target: Path) -> Path:
    """Write the topics of the built-in `help()` into the folder `target`, a file each."""
    with atomic_folder(target) as folder:
        for topic, text in topics.items():
            (folder / f"{topic}.txt").write_text(text.strip("\n") + "\n", encoding="utf-8")
    return target
