"""Documents → token files and a table that describes each document, on all cores."""

import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
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


def encode_documents(
    documents: list[Document], tokenizer: Tokenizer
) -> tuple[dict[Split, bytearray], pd.DataFrame]:
    """Encode a batch of documents; <bos> and <eos> mark where a document begins and ends.

    Returns:
        The bytes to append to the token file of each split, and a table with the columns `TABLE`
        and one row per document.
    """
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
    return data, pd.DataFrame(rows, columns=TABLE.names)


def encode_corpus(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    token_folder: Path,
    table_file: Path,
    on_batch: Callable[[pd.DataFrame], None] = lambda table: None,
) -> dict[str, SplitInfo]:
    """Write the token files and the table (Parquet) of all documents, in their order.

    Args:
        documents: Documents of all splits.
        tokenizer: Tokenizer of the token files.
        token_folder: Folder of the token files, which must exist.
        table_file: Path of the table.
        on_batch: Called with the rows of each encoded batch.

    Returns:
        The contents of each split.
    """
    encode = functools.partial(encode_documents, tokenizer=tokenizer)
    batches = batched_by_size(documents, lambda document: len(document.text), BATCH_CHARACTERS)
    totals = pd.DataFrame(0, SPLITS, TABLE.names[1:])
    with ExitStack() as stack:
        files = {
            split: stack.enter_context(token_file(token_folder, split).open("wb"))
            for split in SPLITS
        }
        writer = stack.enter_context(pyarrow.parquet.ParquetWriter(table_file, TABLE))
        for data, table in parallel_map(encode, batches):
            for split, file in files.items():
                file.write(data[split])
            totals += table.groupby("split").sum().reindex(SPLITS, fill_value=0)
            writer.write_table(pa.Table.from_pandas(table, TABLE, preserve_index=False))
            on_batch(table)
    counts = totals.rename(columns={"begins": "documents"})
    return write_meta(token_folder, tokenizer, counts.to_dict("index"))
