"""Documents → the token files that `minigpt/dataset.py` reads."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from minigpt.corpus import Document, Split
from minigpt.dataset import SplitInfo, token_dtype
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


class TokenWriter:
    """Appends to one split's token file, and counts; use as a context manager."""

    def __init__(self, folder: Path, split: str, vocab_size: int):
        self.split, self._path = split, folder / f"{split}.bin"
        self._dtype = token_dtype(vocab_size)
        self._counts = dict.fromkeys(("documents", "tokens", "characters", "bytes", "unknown"), 0)
        self._digest = hashlib.sha256()
        self._last = b""

    def __enter__(self) -> "TokenWriter":
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, batch: Encoded) -> None:
        """Append what `batch` holds of this split."""
        rows = batch.table[batch.table["split"] == self.split]
        for name in ("tokens", "characters", "bytes", "unknown"):
            self._counts[name] += int(rows[name].sum())
        self._counts["documents"] += int(rows["begins"].sum())
        self._write(batch.data[self.split])

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._last = data[-self._dtype.itemsize :] or self._last

    def finish(self) -> SplitInfo:
        """End a document that is still open, the one of a stream, and say what was written."""
        end = np.array([EOS], self._dtype).tobytes()
        if self._last not in (b"", end):
            self._write(end)
            self._counts["tokens"] += 1
        return SplitInfo(**self._counts, sha256=self._digest.hexdigest())


def write_meta(folder: Path, tokenizer: Tokenizer, splits: dict[str, SplitInfo]) -> None:
    meta = {
        "dtype": token_dtype(tokenizer.vocab_size).name,
        "vocab_size": tokenizer.vocab_size,
        "vocab_sha256": tokenizer.sha256(),
        "splits": {name: asdict(info) for name, info in splits.items()},
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
