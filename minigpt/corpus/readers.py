"""Readers of text, CSV, TSV, JSON Lines and Parquet files; decompression of gzip and Zstandard."""

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow
import pyarrow.parquet
import zstandard

from minigpt.common.config import DataConfig
from minigpt.common.errors import UserError
from minigpt.common.files import read_errors
from minigpt.tokenizer.normalization import LONE_SURROGATE

FORMATS = {
    ".txt": "text",
    ".md": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
}
COMPRESSIONS = {".gz", ".zst"}
CHUNK_ROWS = 10_000  # of a table, read at once


class Reader:
    """Reads the files of a corpus one after another, and tracks how far it is.

    Attributes:
        files: Files to read, in order.
        bytes_total: Size of all files.
    """

    def __init__(self, config: DataConfig):
        self.config = config
        self.files = find_files(Path(config.path), config.pattern)
        self.bytes_total = sum(file.stat().st_size for file in self.files)
        self._bytes_done = 0  # of the files before the open one
        self._open_file: IO[bytes] | None = None
        self._codec_errors = "replace" if config.invalid_utf8 == "replace" else "strict"

    @property
    def bytes_read(self) -> int:
        """Bytes read so far in the current pass; compressed bytes where files are compressed."""
        return self._bytes_done + (self._open_file.tell() if self._open_file else 0)

    def __iter__(self) -> Iterator[Iterator[str]]:
        """Yield units that a document never spans (a text file, a table row), as their lines."""
        self._bytes_done = 0
        for file in self.files:
            kind = infer_format(file) if self.config.format == "auto" else self.config.format
            with damaged_file_errors(file), file.open("rb") as self._open_file:
                yield from self._read_units(_decompress(self._open_file, file), file, kind)
            self._open_file = None
            self._bytes_done += file.stat().st_size

    def _read_units(
        self, stream: IO[bytes], file: Path, kind: str | None
    ) -> Iterator[Iterator[str]]:
        column = self.config.text_column
        lines = read_lines(stream, file, self._codec_errors)
        match kind:
            case "text":
                yield lines
                return
            case "jsonl":
                texts = read_jsonl(lines, file, column)
            case "parquet":
                texts = read_parquet(stream, file, column)
            case "csv" | "tsv":
                delimiter = "," if kind == "csv" else "\t"
                texts = read_csv(stream, file, column, delimiter, self._codec_errors)
            case _:
                raise UserError(
                    f"{file}: cannot infer the format from the extension; set data.format to "
                    f"{', '.join(sorted(set(FORMATS.values())))}"
                )
        for text in texts:
            yield iter(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))


def find_files(path: Path, pattern: str) -> list[Path]:
    """Return `path`, or if it is a folder, the readable files below it that match `pattern`.

    Raises:
        UserError: Nothing is there, or no file matches.
    """
    if not path.exists():
        raise UserError(
            f"{path}: no such file or folder; set data.path to your text, or download a corpus by "
            f"name: minigpt-cli fetch {path.name.removesuffix('.txt')}"
        )
    if not path.is_dir():
        return [path]
    files = sorted(
        file
        for file in path.rglob(pattern)
        if file.is_file() and infer_format(file) and not file.name.startswith(".")
    )
    if not files:
        raise UserError(
            f"{path}: no file matches data.pattern {pattern!r} and ends in {', '.join(FORMATS)} "
            "(compressed: .gz, .zst)"
        )
    return files


def infer_format(file: Path) -> str | None:
    """Return the format by the extension, without that of a compression."""
    name = file.with_suffix("") if file.suffix in COMPRESSIONS else file
    return FORMATS.get(name.suffix)


@contextlib.contextmanager
def damaged_file_errors(file: Path) -> Iterator[None]:
    """Turn errors of opening, reading and decompressing `file` into a UserError."""
    with read_errors(file, "it was deleted while the corpus was read"):
        try:
            yield
        except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError):
            raise UserError(f"{file}: damaged, or not compressed as its extension says") from None


def _decompress(raw: IO[bytes], file: Path) -> Any:
    if file.suffix == ".gz":
        return gzip.open(raw)
    if file.suffix == ".zst":
        decompressor = zstandard.ZstdDecompressor()
        return io.BufferedReader(decompressor.stream_reader(raw, read_across_frames=True))
    return raw


def read_lines(stream: IO[bytes], file: Path, errors: str = "strict") -> Iterator[str]:
    """Yield the lines of UTF-8 text without line ends (LF, CRLF or CR) and byte order mark.

    Args:
        stream: Content of the file, decompressed.
        file: Name for messages.
        errors: "strict" rejects bytes that are not UTF-8, "replace" reads them as U+FFFD.
    """
    offset = 0
    # here too: a caller that holds this iterator reads the stream outside `Reader.__iter__`
    with damaged_file_errors(file):
        for raw in stream:
            try:
                line = raw.decode("utf-8", errors)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file}: not UTF-8 text at byte {offset + error.start}; save it as UTF-8, or "
                    "set data.invalid_utf8 to replace"
                ) from None
            if offset == 0:
                line = line.removeprefix("\ufeff")
            offset += len(raw)
            yield from line.removesuffix("\n").removesuffix("\r").split("\r")


def read_jsonl(lines: Iterable[str], file: Path, column: str) -> Iterator[str]:
    """Yield the field `column` of each JSON line."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}: line {number} is not JSON: {error}") from None
        if not isinstance(row, dict) or column not in row:
            columns = row if isinstance(row, dict) else []
            raise _missing_column(f"{file}: line {number}", column, columns)
        if row[column] is not None:
            # an escape like \ud83d without its second half is not a character
            yield LONE_SURROGATE.sub("\ufffd", str(row[column]))


def read_csv(
    stream: IO[bytes], file: Path, column: str, delimiter: str, errors: str
) -> Iterator[str]:
    """Yield one column of a table with a header line and RFC 4180 quotes."""
    try:
        chunks = pd.read_csv(
            stream,
            sep=delimiter,
            dtype=str,
            keep_default_na=False,  # "NA" and "null" are text here
            encoding="utf-8-sig",
            encoding_errors=errors,
            chunksize=CHUNK_ROWS,
        )
        for chunk in chunks:
            if column not in chunk:
                raise _missing_column(str(file), column, chunk.columns)
            yield from chunk[column]
    except pd.errors.EmptyDataError:
        return
    except UnicodeDecodeError:
        # pandas gives the offset in its buffer; `read_lines` raises with the offset in the file
        stream.seek(0)
        for _ in read_lines(stream, file):
            pass
    except pd.errors.ParserError as error:
        raise UserError(f"{file}: not a table: {' '.join(str(error).split())}") from None


def read_parquet(stream: IO[bytes], file: Path, column: str) -> Iterator[str]:
    """Yield one column of a Parquet table."""
    # Parquet is read from its end, so a stream that cannot seek is read into memory first
    seekable = stream if stream.seekable() else io.BytesIO(stream.read())
    try:
        table = pyarrow.parquet.ParquetFile(seekable)
    except pyarrow.ArrowInvalid:
        raise UserError(f"{file}: damaged, or not a Parquet file") from None
    if column not in table.schema_arrow.names:
        raise _missing_column(str(file), column, table.schema_arrow.names)
    for batch in table.iter_batches(batch_size=CHUNK_ROWS, columns=[column]):
        yield from (str(value) for value in batch.column(0).to_pylist() if value is not None)


def _missing_column(where: str, column: str, columns: Iterable[str]) -> UserError:
    known = ", ".join(map(repr, columns)) or "none"
    return UserError(f"{where}: no column {column!r}; set data.text_column to one of: {known}")
