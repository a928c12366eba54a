"""Readers of text, CSV, TSV, JSON Lines and Parquet files; decompression of gzip and Zstandard."""

import contextlib
import csv
import gzip
import io
import itertools
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import IO, Any

import pyarrow
import pyarrow.parquet
from backports import zstd
from pyarrow import types

from minigpt.common.config import DataConfig
from minigpt.common.errors import UserError, one_line
from minigpt.common.files import parse_json, read_errors
from minigpt.corpus.fetch import CORPORA
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
CHUNK_ROWS = 1_000  # of a Parquet table, in memory at once
MAX_FIELD_SIZE = 2**31 - 1  # of a CSV table, in characters; Python's limit is 128 KB


class Reader:
    """Reads the files of a corpus one after another, and tracks how far it is.

    Attributes:
        files: Files to read, in order.
        bytes_total: Size of all files.
        codec_errors: Treatment of invalid UTF-8, as in `bytes.decode`.
    """

    def __init__(self, config: DataConfig):
        self.config = config
        path = Path(os.path.expanduser(config.path))
        self.files = find_files(path, config.pattern, config.format)
        self.bytes_total = sum(file.stat().st_size for file in self.files)
        self._bytes_done = 0  # of the files before the open one
        self._open_file: IO[bytes] | None = None
        self.codec_errors = "replace" if config.invalid_utf8 == "replace" else "strict"

    @property
    def bytes_read(self) -> int:
        """Bytes read so far in the current pass; compressed bytes where files are compressed."""
        return self._bytes_done + (self._open_file.tell() if self._open_file else 0)

    def format_of(self, file: Path) -> str | None:
        """Return the format in which `file` is read; None if its extension identifies none."""
        return infer_format(file) if self.config.format == "auto" else self.config.format

    def streams(self) -> Iterator[tuple[Path, IO[bytes]]]:
        """Yield each file and its decompressed content."""
        self._bytes_done = 0
        for file in self.files:
            with damaged_file_errors(file), file.open("rb") as self._open_file:
                yield file, _decompress(self._open_file, file)
            self._open_file = None
            self._bytes_done += file.stat().st_size

    def __iter__(self) -> Iterator[Iterator[str]]:
        """Yield units that a document never spans (a text file, a table row), as their lines."""
        for file, stream in self.streams():
            with damaged_file_errors(file):
                yield from self._read_units(stream, file, self.format_of(file))

    def _read_units(
        self, stream: IO[bytes], file: Path, kind: str | None
    ) -> Iterator[Iterator[str]]:
        column = self.config.text_column
        lines = read_lines(stream, file, self.codec_errors)
        match kind:
            case "text":
                yield lines
                return
            case "jsonl":
                texts = read_jsonl(lines, file, column)
            case "parquet":
                read = read_compressed_parquet if _compression(file) else read_parquet
                texts = read(stream, file, column, self.codec_errors)
            case "csv" | "tsv":
                texts = read_csv(lines, file, column, "," if kind == "csv" else "\t")
            case _:
                raise UserError(
                    f"{file}: cannot infer the format from the extension; set data.format to "
                    f"{', '.join(sorted(set(FORMATS.values())))}"
                )
        for text in texts:
            yield iter(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))


def find_files(path: Path, pattern: str, data_format: str = "auto") -> list[Path]:
    """Return `path`, or if it is a folder, the files below it that match `pattern`.

    Hidden files and folders are left out, and with the format "auto" also the files whose extension
    does not identify a format.

    Raises:
        UserError: Nothing is there, no file matches, or one is a pipe, a device or a broken link.
    """
    with read_errors(path, _missing_advice(path)):
        path.stat()
    files = [path]
    if path.is_dir():
        files = _files_in(path, pattern, data_format)
    for file in files:
        if not file.is_file():  # reading a pipe or device may never end
            raise UserError(f"{file}: neither a file nor a folder; replace it by a file")
    return files


def _files_in(path: Path, pattern: str, data_format: str) -> list[Path]:
    files = sorted(
        file
        for file in _matching(path, pattern)
        if not file.is_dir()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and (data_format != "auto" or infer_format(file))
    )
    if not files:
        endings = (
            f" and ends in {', '.join(FORMATS)} (compressed: .gz, .zst); to read files with other "
            "endings as text, set data.format to text"
        )
        raise UserError(
            f"{path}: no file matches data.pattern {pattern!r}"
            f"{endings if data_format == 'auto' else '; correct the pattern'}"
        )
    return files


def _missing_advice(path: Path) -> str:
    return "set data.path to your text" + (
        f", or download this corpus: minigpt-cli fetch {path.stem}" if path.stem in CORPORA else ""
    )


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        if ".." in PurePath(pattern).parts:
            raise ValueError("leads out of the folder")
        return list(folder.rglob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise UserError(
            f"data.pattern: {pattern!r} is not a pattern for files in {folder}: {error}"
        ) from None


def infer_format(file: Path) -> str | None:
    """Return the format by the extension, without that of a compression."""
    name = file.with_suffix("") if _compression(file) else file
    return FORMATS.get(name.suffix.lower())


def _compression(file: Path) -> str | None:
    ending = file.suffix.lower()
    return ending if ending in COMPRESSIONS else None


@contextlib.contextmanager
def damaged_file_errors(file: Path) -> Iterator[None]:
    """Turn errors of opening, reading and decompressing `file` into a UserError."""
    with read_errors(file, "it was deleted while the corpus was read"):
        try:
            yield
        except (gzip.BadGzipFile, EOFError, zlib.error, zstd.ZstdError):
            raise UserError(f"{file}: damaged, or not compressed as its extension says") from None


def _decompress(raw: IO[bytes], file: Path) -> Any:
    match _compression(file):
        case ".gz":
            return gzip.open(raw)
        case ".zst":
            # `zstd --long` writes windows beyond the usual limit of 128 MB
            option = zstd.DecompressionParameter.window_log_max
            largest = option.bounds()[1]
            return io.BufferedReader(zstd.ZstdFile(raw, options={option: largest}))
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
            line = decode(raw, errors, f"{file}:", offset)
            if offset == 0:
                line = line.removeprefix("\ufeff")
            offset += len(raw)
            yield from line.removesuffix("\n").removesuffix("\r").split("\r")


def decode(data: bytes, errors: str, where: str, offset: int = 0) -> str:
    """Decode UTF-8; `where` and `offset` locate `data` in the message of an error."""
    try:
        return data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} not UTF-8 text at byte {offset + error.start}; save it as UTF-8, or "
            "set data.invalid_utf8 to replace"
        ) from None


def read_jsonl(lines: Iterable[str], file: Path, column: str) -> Iterator[str]:
    """Yield the field `column` of each JSON line; null is no document."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(f"{file}: line {number} is not JSON: {one_line(error)}") from None
        if not isinstance(row, dict) or column not in row:
            columns = row if isinstance(row, dict) else []
            raise _missing_column(f"{file}: line {number}", column, columns)
        text = row[column]
        if text is None:
            continue
        if not isinstance(text, str):
            raise UserError(
                f"{file}: line {number}: {column!r} holds {type(text).__name__}, not text; "
                "set data.text_column to a column with text"
            )
        # an escape like \ud83d without its second half is not a character
        yield LONE_SURROGATE.sub("\ufffd", text)


def read_csv(lines: Iterable[str], file: Path, column: str, delimiter: str) -> Iterator[str]:
    """Yield one column of a table with a header line and RFC 4180 quotes.

    Every value is text, also "NA", "1.0" and "". Blank lines are no rows.
    """
    csv.field_size_limit(MAX_FIELD_SIZE)
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)
    try:
        rows = filter(None, reader)
        header = next(rows, None)
        if header is None:
            return
        index = _column_index(file, column, header)
        for row in rows:
            if len(row) != len(header):
                raise UserError(
                    f"{file}: line {reader.line_num}: {len(row)} fields, but the header has "
                    f"{len(header)}; quote fields that contain the separator"
                )
            yield row[index]
    except csv.Error as error:
        raise UserError(f"{file}: line {reader.line_num}: not a table: {one_line(error)}") from None


def read_compressed_parquet(
    stream: IO[bytes], file: Path, column: str, errors: str
) -> Iterator[str]:
    """Like `read_parquet`, from a copy: Parquet is read from its end, compressed files forward."""
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy)
        yield from read_parquet(copy, file, column, errors)


def read_parquet(stream: IO[bytes], file: Path, column: str, errors: str) -> Iterator[str]:
    """Yield one column of a Parquet table; null is no document."""
    try:
        table = pyarrow.parquet.ParquetFile(stream)
        schema = table.schema_arrow
        kind = schema.field(_column_index(file, column, schema.names)).type
        if types.is_dictionary(kind):
            kind = kind.value_type
        if not (_is_text(kind) or types.is_null(kind)):
            raise UserError(
                f"{file}: column {column!r} has the type {one_line(kind)}, not text; "
                "set data.text_column to a column with text"
            )
        batches = table.iter_batches(batch_size=CHUNK_ROWS, columns=[column])
        values = itertools.chain.from_iterable(map(_values, batches))
        for number, value in enumerate(values, start=1):
            if value is not None:
                yield decode(value, errors, f"{file}: row {number}:")
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk, not of Arrow
            raise
        raise UserError(f"{file}: damaged, or not a Parquet file: {one_line(error)}") from None


def _is_text(kind: pyarrow.DataType) -> bool:
    # some programs store text as bytes
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    string = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(binary or string or types.is_fixed_size_binary(kind))


def _values(batch: pyarrow.RecordBatch) -> list[bytes | None]:
    """Return the only column of `batch` as bytes, since Arrow does not check that text is UTF-8."""
    values = batch.column(0)
    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(pyarrow.large_binary()).to_pylist()  # type: ignore[no-any-return]


def _column_index(file: Path, column: str, columns: list[str]) -> int:
    if columns.count(column) > 1:
        raise UserError(f"{file}: several columns are named {column!r}; rename all but one")
    if column not in columns:
        raise _missing_column(str(file), column, columns)
    return columns.index(column)


def _missing_column(where: str, column: str, columns: Iterable[str]) -> UserError:
    known = ", ".join(map(repr, itertools.islice(columns, 20))) or "none"
    return UserError(f"{where}: no column {column!r}; set data.text_column to one of: {known}")
