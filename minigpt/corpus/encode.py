"""Documents → token files and a table that describes each document, on all cores."""

import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from minigpt.common.parallel import BATCH_CHARACTERS, batched_by_size, parallel_map
from minigpt.corpus.corpus import Document, Split
from minigpt.data.token_files import SplitInfo, TokenWriter, token_dtype, write_meta
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


@dataclass(frozen=True)
class Encoded:
    """Encoded documents.

    Attributes:
        data: Bytes to append to the token file of each split.
        table: One row per document, with the columns of `TABLE`.
    """

    data: dict[str, bytes]
    table: pd.DataFrame

    def counts(self, split: str) -> dict[str, int]:
        """Return totals over the documents of `split`, for `TokenWriter.add`."""
        rows = self.table[self.table["split"] == split]
        counts = {name: int(rows[name].sum()) for name in TABLE.names[2:]}
        return {"documents": int(rows["begins"].sum()), **counts}


def encode_documents(documents: list[Document], tokenizer: Tokenizer) -> Encoded:
    """Encode a batch of documents; <bos> and <eos> mark where a document begins and ends."""
    dtype = token_dtype(tokenizer.vocab_size)
    parts: dict[str, list[np.ndarray]] = {split: [] for split in get_args(Split)}
    rows = []
    texts = [document.text for document in documents]
    for document, ids in zip(documents, tokenizer.encode_batch(texts), strict=True):
        unknown = int((ids == UNK).sum())
        ids = np.concatenate(([BOS] * document.begins, ids, [EOS] * document.ends)).astype(dtype)
        parts[document.split].append(ids)
        size = len(document.text.encode("utf-8", "surrogatepass"))
        rows.append((document.split, document.begins, len(document.text), size, len(ids), unknown))
    data = {split: b"".join(ids.tobytes() for ids in arrays) for split, arrays in parts.items()}
    return Encoded(data, pd.DataFrame(rows, columns=TABLE.names))


def encode_corpus(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    token_folder: Path,
    table_file: Path,
    on_batch: Callable[[Encoded], None],
) -> dict[str, SplitInfo]:
    """Write the token files and the table (Parquet) of all documents, in their order.

    Args:
        documents: Documents of all splits.
        tokenizer: Tokenizer of the token files.
        token_folder: Folder of the token files, which must exist.
        table_file: Path of the table.
        on_batch: Called with each encoded batch.

    Returns:
        The contents of each split.
    """
    encode = functools.partial(encode_documents, tokenizer=tokenizer)
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(TokenWriter(token_folder, split, tokenizer.vocab_size))
            for split in get_args(Split)
        }
        table = stack.enter_context(pyarrow.parquet.ParquetWriter(table_file, TABLE))
        batches = batched_by_size(documents, lambda document: len(document.text), BATCH_CHARACTERS)
        for batch in parallel_map(encode, batches):
            for split, writer in writers.items():
                writer.add(batch.data[split], batch.counts(split))
            table.write_table(pa.Table.from_pandas(batch.table, TABLE, preserve_index=False))
            on_batch(batch)
        splits = {split: writer.finish() for split, writer in writers.items()}
    write_meta(token_folder, tokenizer, splits)
    return splits
