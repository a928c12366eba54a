"""Where text comes from: files → documents, each in the training or the validation split.

The split is a pure function of each document's content, so `build_vocab` and `prepare` agree on it
without a word between them, and adding text moves no old document across.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minigpt.errors import UserError

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Source:
    """How a text is cut into documents, and what share of them is held out for validation, in [0, 1)."""

    documents: str
    val_fraction: float


DEFAULT_SOURCE = Source(documents="blank_line", val_fraction=0.1)
BUILT_IN = {
    # holds nothing out: every sentence is needed for the 40 symbols, and to learn the fox by heart
    "data/raw/sentences.txt": Source(documents="line", val_fraction=0.0),
    "data/raw/tales.txt": DEFAULT_SOURCE,
    "data/raw/python-docs": Source(documents="file", val_fraction=0.1),
    "data/raw/names.txt": Source(documents="line", val_fraction=0.1),
}


class Corpus:
    """The documents of a file, or of the `.txt` and `.md` files of a folder in the order of their names.

    Args:
        path: a UTF-8 text file, or a folder of them.
        documents: what separates two documents: "line", "blank_line", "file", or "auto" for what
            suits the source (a built-in corpus has its own; any other text is cut at blank lines).
        val_fraction: share of the documents to hold out for validation, in [0, 1), or "auto".
    """

    def __init__(self, path: str, documents: str = "auto", val_fraction: float | str = "auto"):
        self.path = Path(path)
        source = BUILT_IN.get("/".join(self.path.parts[-3:]), DEFAULT_SOURCE)
        self.documents = source.documents if documents == "auto" else documents
        self.val_fraction = source.val_fraction if isinstance(val_fraction, str) else val_fraction

    def __iter__(self) -> Iterator[tuple[str, Split]]:
        """Yield each document with its split.

        Raises:
            UserError: a file is missing, unreadable or not UTF-8, or no text is left.
        """
        empty = True
        for file in self.files():
            for document in cut(read_lines(file), self.documents):
                empty = False
                yield document, split_of(document, self.val_fraction)
        if empty:
            raise UserError(f"{self.path}: holds no text; set data.path to a file or folder with some")

    def files(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        files = sorted(file for file in self.path.rglob("*") if file.suffix in {".txt", ".md"})
        if not files:
            raise UserError(f"{self.path}: a folder without .txt or .md files; set data.path to your text")
        return files


def read_lines(file: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file without their ends (LF, CRLF or CR); a leading BOM is dropped."""
    try:
        with file.open("rb") as stream:
            offset = 0
            for raw in stream:
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{file}: not UTF-8 text at byte {offset + error.start}; save it as UTF-8"
                    ) from None
                if offset == 0:
                    line = line.removeprefix("\ufeff")
                offset += len(raw)
                yield from line.removesuffix("\n").removesuffix("\r").split("\r")
    except FileNotFoundError:
        hint = " (minigpt-cli fetch python-docs)" if file.name == "python-docs" else ""
        raise UserError(f"{file}: no such file or folder; set data.path to your text{hint}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def cut(lines: Iterator[str], documents: str) -> Iterator[str]:
    """Cut the lines of one file into documents; empty ones are dropped."""
    block: list[str] = []
    for line in lines:
        ends_before = documents == "blank_line" and not line.strip()
        if not ends_before:
            block.append(line)
        if ends_before or documents == "line":
            yield from _joined(block)
            block = []
    yield from _joined(block)


def _joined(lines: list[str]) -> Iterator[str]:
    document = "\n".join(lines).strip("\n")
    if document.strip():
        yield document


def split_of(document: str, val_fraction: float) -> Split:
    """The split a document belongs to: by its SHA-256, as a number in [0, 1) against `val_fraction`."""
    digest = hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()
    return "val" if int.from_bytes(digest[:8]) / 2**64 < val_fraction else "train"
