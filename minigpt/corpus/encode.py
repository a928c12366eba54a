"""Documents → token files and a table that describes each document, on all cores."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from minigpt.common.parallel import BATCH_CHARACTERS, batched_by_size, parallel_map
from minigpt.corpus.corpus import SPLITS, Document, Split
from minigpt.data.token_files import SplitInfo, token_dtype, token_file, write_meta
from minigpt.tokenizer import BOS, EOS, UNK, Tokenizer

# columns of the table of documents; `tokens` counts <bos> and <eos>
TABLE = pa.schema(
    [
        ("split", pa.string()),
        ("begins", pa.bool_()),
        ("characters", pa.int64()),
        ("bytes", pa.int64()),
        ("tokens", pa.int64()),
        ("unknown", pa.int64()),
    ]
)
Columns = dict[str, np.ndarray]  # those of `TABLE`, or some of its rows

# the bytes to append to the token file of each split, and the rows of their documents
Encoded = tuple[dict[Split, bytes], Columns]


def encode_documents(documents: list[Document], tokenizer: Tokenizer) -> Encoded:
    """Encode a batch of documents; <bos> and <eos> mark where a document begins and ends."""
    dtype = token_dtype(tokenizer.vocab_size)
    data = {split: bytearray() for split in SPLITS}
    rows = []
    texts = [document.text for document in documents]
    for document, ids in zip(documents, tokenizer.encode_batch(texts), strict=True):
        unknown = int((ids == UNK).sum())
        ids = np.concatenate(([BOS] * document.begins, ids, [EOS] * document.ends)).astype(dtype)
        data[document.split] += ids.tobytes()
        size = len(document.text.encode("utf-8", "surrogatepass"))
        rows.append((document.split, document.begins, len(document.text), size, len(ids), unknown))
    columns = zip(TABLE.names, map(np.array, zip(*rows, strict=True)), strict=True)
    return {split: bytes(ids) for split, ids in data.items()}, dict(columns)


def encode_batches(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Encode batches of documents, in their order."""
    encode = functools.partial(encode_documents, tokenizer=tokenizer)
    batches = batched_by_size(documents, lambda document: len(document.text), BATCH_CHARACTERS)
    return parallel_map(encode, batches)


def encode_corpus(
    documents: Iterable[Document], tokenizer: Tokenizer, token_folder: Path, table_file: Path
) -> dict[str, SplitInfo]:
    """Write the token files and the table (Parquet) of all documents, in their order.

    Args:
        documents: Documents of all splits.
        tokenizer: Tokenizer of the token files.
        token_folder: Folder of the token files, which must exist.
        table_file: Path of the table.

    Returns:
        The contents of each split.
    """
    return write_corpus(encode_batches(documents, tokenizer), tokenizer, token_folder, table_file)


def write_corpus(
    batches: Iterable[Encoded],
    tokenizer: Tokenizer,
    token_folder: Path,
    table_file: Path,
    on_batch: Callable[[Columns], None] = lambda columns: None,
) -> dict[str, SplitInfo]:
    """Write encoded batches as `encode_corpus` does; `on_batch` is called with the rows of each."""
    fields = ["documents", *TABLE.names[2:]]
    totals: dict[str, dict[str, int]] = {split: dict.fromkeys(fields, 0) for split in SPLITS}
    with ExitStack() as stack:
        files = {
            split: stack.enter_context(token_file(token_folder, split).open("wb"))
            for split in SPLITS
        }
        writer = stack.enter_context(TableWriter(table_file))
        for data, columns in batches:
            for split, file in files.items():
                file.write(data[split])
                rows = columns["split"] == split
                for field, name in zip(fields, TABLE.names[1:], strict=True):
                    totals[split][field] += int(columns[name][rows].sum())
            writer.add(columns)
            on_batch(columns)
    return write_meta(token_folder, tokenizer, totals)


class TableWriter:
    """Write the table of documents; the size of a row group does not depend on that of a batch."""

    def __init__(self, file: Path):
        self._writer = pyarrow.parquet.ParquetWriter(file, TABLE)
        self._rest: Columns = {}  # rows of the next row group

    def add(self, columns: Columns) -> None:
        """Append rows, and write the row groups that are complete."""
        if self._rest:
            columns = {name: np.concatenate((self._rest[name], columns[name])) for name in columns}
        start = 0
        ends = np.cumsum(columns["characters"])
        # a row group is complete once its documents have BATCH_CHARACTERS
        limit = BATCH_CHARACTERS
        while start < len(ends) and ends[-1] >= limit:
            stop = int(np.searchsorted(ends, limit)) + 1
            self._write({name: column[start:stop] for name, column in columns.items()})
            start, limit = stop, int(ends[stop - 1]) + BATCH_CHARACTERS
        self._rest = {name: column[start:] for name, column in columns.items()}

    def _write(self, columns: Columns) -> None:
        if len(columns["split"]):
            self._writer.write_table(pa.table(columns, TABLE))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._rest:
            self._write(self._rest)
        self._writer.close()
