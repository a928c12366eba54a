"""Where text comes from: files and tables → documents, each in the training or the validation split.

Everything streams: no file, table or list of documents is ever held in memory as a whole. The split
is a pure function of each document's content, so `build_vocab` and `prepare` agree on it without a
word between them, and adding text moves no old document across.
"""

import contextlib
import gzip
import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import zstandard

from minigpt.common.config import DataConfig
from minigpt.common.errors import UserError
from minigpt.common.parallel import batched_by_size
from minigpt.tokenizer.normalization import LONE_SURROGATE, normalize

Split = Literal["train", "val"]

FORMATS = {
    ".txt": "text",
    ".md": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
}
COMPRESSIONS = {".gz", ".zst"}
ROWS = 10_000  # of a table, read at once
PIECE = 1 << 20  # characters of a stream, read at once


@dataclass(frozen=True)
class Document:
    """A document, or a piece of one: a stream comes in many pieces, of which only the first begins."""

    text: str
    split: Split
    begins: bool = True
    ends: bool = True


@dataclass(frozen=True)
class Source:
    """How a text is cut into documents, and what share of it is held out for validation, in [0, 1)."""

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
    """The documents of what the `data` section of params.yaml names.

    Iterate it for the `Document`s, normalised, without empty and (unless `data.deduplicate` is false)
    without repeated ones. After a pass `documents_dropped` counts the repeated ones, and `bytes_read`
    the bytes of the files read so far, of `bytes_total`.
    """

    def __init__(self, config: DataConfig):
        self.config = config
        self.path = Path(config.path)
        source = BUILT_IN.get("/".join(self.path.parts[-3:]), DEFAULT_SOURCE)
        self.documents = source.documents if config.documents == "auto" else config.documents
        self.val_fraction = (
            source.val_fraction if isinstance(config.val_fraction, str) else config.val_fraction
        )
        self.files = self._files()
        self.bytes_total = sum(file.stat().st_size for file in self.files)
        self.documents_dropped = 0
        self._bytes_done = 0
        self._raw: IO[bytes] | None = None

    def _files(self) -> list[Path]:
        if not self.path.exists():
            name = self.path.name.removesuffix(".txt")
            raise UserError(
                f"{self.path}: no such file or folder; set data.path to your text, or get a corpus by name: "
                f"minigpt-cli fetch {name}"
            )
        if not self.path.is_dir():
            return [self.path]
        found = (file for file in self.path.rglob(self.config.pattern) if file.is_file())
        # hidden files are not text that somebody put there
        files = sorted(file for file in found if _format(file) and not file.name.startswith("."))
        if not files:
            raise UserError(
                f"{self.path}: no file in it fits data.pattern {self.config.pattern!r} and ends in "
                f"{', '.join(FORMATS)} (compressed: .gz, .zst)"
            )
        return files

    def __iter__(self) -> Iterator[Document]:
        """Raises UserError: a file is unreadable, damaged or not UTF-8, a column is missing, or no text is left."""
        self._bytes_done = self.documents_dropped = 0
        documents = self._stream() if self.documents == "none" else self._documents()
        empty = True
        for document in documents:
            empty = False
            yield document
        if empty:
            raise UserError(
                f"{self.path}: holds no text; set data.path to a file or folder with some"
            )

    def _documents(self) -> Iterator[Document]:
        seen = Hashes()
        for text in self._texts():
            # 8 of the 32 bytes: two of a hundred million documents share them by chance once in 4000 corpora
            digest = int.from_bytes(
                hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]
            )
            if self.config.deduplicate and not seen.add(digest):
                self.documents_dropped += 1
                continue
            yield Document(text, split_of(digest, self.val_fraction))

    def _texts(self) -> Iterator[str]:
        """The texts of all documents, normalised, none of them empty."""
        for file in self.files:
            with _reading(file):
                for lines in self._blocks(file):
                    for text in cut(lines, self.documents, self.config.separator):
                        text = normalize(text, self.config.normalization).strip("\n")
                        if text.strip():
                            yield text

    def _stream(self) -> Iterator[Document]:
        """All text as one training and one validation document: the end is held out, not a sample."""
        border = round(sum(map(len, self._pieces())) * (1 - self.val_fraction))
        position = 0
        for piece in self._pieces():
            here = max(0, min(len(piece), border - position))
            parts: list[tuple[Split, str]] = [("train", piece[:here]), ("val", piece[here:])]
            for split, text in parts:
                if text:
                    yield Document(text, split, begins=position in (0, border), ends=False)
                    position += len(text)

    def _pieces(self) -> Iterator[str]:
        """The whole text in pieces of about `PIECE` characters, each ending with a line."""
        for file in self.files:
            with _reading(file):
                lines = itertools.chain.from_iterable(self._blocks(file))
                for piece in batched_by_size(lines, len, PIECE):
                    yield normalize("\n".join(piece) + "\n", self.config.normalization)

    def _blocks(self, file: Path) -> Iterator[Iterator[str]]:
        """What a document cannot cross, each as its lines: a text file, or a row of a table."""
        kind = _format(file) if self.config.format == "auto" else self.config.format
        if kind is None:
            raise UserError(
                f"{file}: its ending says nothing; set data.format to {', '.join(sorted(set(FORMATS.values())))}"
            )
        with file.open("rb") as raw:
            self._raw = raw
            stream = _decompressed(raw, file)
            if kind == "text":
                yield read_lines(stream, file, self.config.invalid_utf8)
            else:
                for text in self._rows(stream, file, kind):
                    yield iter(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
        self._bytes_done += file.stat().st_size
        self._raw = None

    def _rows(self, stream: IO[bytes], file: Path, kind: str) -> Iterator[str]:
        """The text column of a table, row by row; rows without a text are passed over."""
        column, errors = self.config.text_column, self.config.invalid_utf8
        if kind == "jsonl":
            yield from read_jsonl(read_lines(stream, file, errors), file, column)
        elif kind == "parquet":
            yield from read_parquet(stream, file, column)
        else:
            yield from read_csv(stream, file, column, "," if kind == "csv" else "\t", errors)

    @property
    def bytes_read(self) -> int:
        """How far the present pass is, of `bytes_total` (compressed bytes where files are compressed)."""
        return self._bytes_done + (self._raw.tell() if self._raw else 0)


def _decompressed(raw: IO[bytes], file: Path) -> Any:
    if file.suffix == ".gz":
        return gzip.open(raw)
    if file.suffix == ".zst":
        return io.BufferedReader(
            zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        )
    return raw


def _format(file: Path) -> str | None:
    """By the ending, without that of a compression: "tales.txt.gz" is text."""
    name = file.with_suffix("") if file.suffix in COMPRESSIONS else file
    return FORMATS.get(name.suffix)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """What can go wrong with a file, as one line that names it."""
    try:
        yield
    except PermissionError:
        raise UserError(f"{file}: cannot be read: permission denied") from None
    except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError):
        raise UserError(f"{file}: damaged, or not compressed as its ending says") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None


def read_lines(stream: IO[bytes], file: Path, invalid_utf8: str = "error") -> Iterator[str]:
    """Yield the lines of UTF-8 text without their ends (LF, CRLF or CR); a leading BOM is dropped.

    `invalid_utf8`: "error" refuses such bytes by their offset, "replace" reads them as U+FFFD.
    """
    offset = 0
    for raw in stream:
        try:
            line = raw.decode("utf-8", "replace" if invalid_utf8 == "replace" else "strict")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file}: not UTF-8 text at byte {offset + error.start}; save it as UTF-8, or set data.invalid_utf8 "
                "to replace"
            ) from None
        if offset == 0:
            line = line.removeprefix("\ufeff")
        offset += len(raw)
        yield from line.removesuffix("\n").removesuffix("\r").split("\r")


def read_jsonl(lines: Iterable[str], file: Path, column: str) -> Iterator[str]:
    """The field `column` of each line of JSON."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}: line {number} is not JSON: {error}") from None
        if not isinstance(row, dict) or column not in row:
            columns = list(row) if isinstance(row, dict) else []
            raise _no_column(f"{file}: line {number}", column, columns)
        if row[column] is not None:
            # half of a surrogate pair, from an escape like \\ud83d: no character
            yield LONE_SURROGATE.sub("\ufffd", str(row[column]))


def read_csv(
    stream: IO[bytes], file: Path, column: str, separator: str, invalid_utf8: str
) -> Iterator[str]:
    """The column of a table with a header line, quoted as in RFC 4180."""
    try:
        chunks = pd.read_csv(
            stream,
            sep=separator,
            dtype=str,
            keep_default_na=False,  # "NA" and "null" are text here
            encoding="utf-8-sig",
            encoding_errors="replace" if invalid_utf8 == "replace" else "strict",
            chunksize=ROWS,
        )
        for chunk in chunks:
            if column not in chunk:
                raise _no_column(str(file), column, list(chunk))
            yield from chunk[column]
    except pd.errors.EmptyDataError:
        return
    except UnicodeDecodeError:
        stream.seek(0)  # pandas says where in its own buffer; reading again says where in the file
        for _ in read_lines(stream, file):
            pass
    except pd.errors.ParserError as error:
        raise UserError(f"{file}: not a table: {' '.join(str(error).split())}") from None


def read_parquet(stream: IO[bytes], file: Path, column: str) -> Iterator[str]:
    """The column of a Parquet table."""
    try:
        # its end is read first, so what cannot seek is read as a whole
        table = pyarrow.parquet.ParquetFile(
            stream if stream.seekable() else io.BytesIO(stream.read())
        )
    except pyarrow.ArrowInvalid:
        raise UserError(f"{file}: damaged, or no Parquet") from None
    if column not in table.schema_arrow.names:
        raise _no_column(str(file), column, table.schema_arrow.names)
    for batch in table.iter_batches(batch_size=ROWS, columns=[column]):
        yield from (str(value) for value in batch.column(0).to_pylist() if value is not None)


def _no_column(where: str, column: str, columns: list[str]) -> UserError:
    known = ", ".join(map(repr, columns)) or "none"
    return UserError(f"{where}: no column {column!r}; set data.text_column to one of: {known}")


def cut(lines: Iterable[str], documents: str, separator: str = "") -> Iterator[str]:
    """Cut the lines of a file into documents, some of which may be empty."""
    if documents == "line":
        yield from lines
    elif documents == "separator":
        rest = ""
        for line in lines:
            *whole, rest = f"{rest}{line}\n".split(separator)
            yield from whole
        yield rest
    else:
        block: list[str] = []
        for line in lines:
            if documents == "blank_line" and not line.strip():
                yield "\n".join(block)
                block = []
            else:
                block.append(line)
        yield "\n".join(block)


def split_of(digest: int, val_fraction: float) -> Split:
    """The split of a document: its digest, as a number in [0, 1), against `val_fraction`."""
    return "val" if digest / 2**64 < val_fraction else "train"


class Hashes:
    """A set of 64-bit numbers in little more than 8 bytes each, where Python's own takes ten times that."""

    def __init__(self, recent: int = 500_000) -> None:
        """`recent`: how many to keep in a set of Python's, before they are sorted in among the others; ≥ 1."""
        self._most_recent = recent
        self._sorted = np.empty(0, dtype=np.uint64)
        self._recent: set[int] = set()

    def add(self, value: int) -> bool:
        """Add `value`; true if it is new."""
        place = int(np.searchsorted(self._sorted, np.uint64(value)))
        if value in self._recent or (place < len(self._sorted) and self._sorted[place] == value):
            return False
        self._recent.add(value)
        if len(self._recent) >= self._most_recent:
            recent = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
            self._sorted = np.sort(np.concatenate((self._sorted, recent)), kind="stable")
            self._recent.clear()
        return True
