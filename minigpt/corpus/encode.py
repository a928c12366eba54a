"""Documents → token ids, in batches."""

from dataclasses import dataclass
from typing import get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from minigpt.corpus.corpus import Document, Split
from minigpt.data.token_files import token_dtype
from minigpt.tokenizer import BOS, EOS, UNK, Tokenizer

# a row of the table of documents; counts, <bos> and <eos> among the tokens
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
    """Documents as ids: the bytes to append to each split's file, and a table with a row a document."""

    data: dict[str, bytes]
    table: pd.DataFrame  # see TABLE

    def counts(self, split: str) -> dict[str, int]:
        """Totals over the documents of `split`, as `TokenWriter.add` takes them."""
        rows = self.table[self.table["split"] == split]
        counts = {name: int(rows[name].sum()) for name in TABLE.names[2:]}
        return {"documents": int(rows["begins"].sum()), **counts}


def encode_documents(documents: list[Document], tokenizer: Tokenizer) -> Encoded:
    """Encode a batch, each document between <bos> and <eos>; a piece of one only where it begins or ends."""
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
