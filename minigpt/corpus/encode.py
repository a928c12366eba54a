"""Batches of documents → token ids and a table that describes each document."""

from dataclasses import dataclass
from typing import get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from minigpt.corpus.corpus import Document, Split
from minigpt.data.token_files import token_dtype
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
