"""Token files: the ids of a corpus on disk.

Format: a folder with

    train.bin, val.bin   ids of a split, as little-endian integers of the smallest unsigned type
    meta.json            data type, fingerprint of the vocabulary, for each split a `SplitInfo`, and
                         the SHA-256 of all this

Each document is stored between <bos> and <eos>. `encode_corpus` writes the files, `Tokens` reads
them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minigpt.common.errors import UserError
from minigpt.common.files import atomic_write, file_digest, parse_json, read_errors
from minigpt.tokenizer import Tokenizer

META = "meta.json"


@dataclass(frozen=True)
class SplitInfo:
    """Contents of a token file.

    Attributes:
        documents: Number of documents.
        tokens: Number of ids, including <bos> and <eos>.
        characters: Characters of the text.
        bytes: Size of the text in UTF-8.
        unknown: Number of <unk> among the ids.
        sha256: Digest of the file.
    """

    documents: int
    tokens: int
    characters: int
    bytes: int
    unknown: int
    sha256: str


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest little-endian unsigned integer type that holds every id."""
    return np.min_scalar_type(vocab_size - 1).newbyteorder("<")


def token_file(folder: Path, split: str) -> Path:
    """Return the path of the ids of `split`."""
    return folder / f"{split}.bin"


def write_meta(
    folder: Path, tokenizer: Tokenizer, counts: Mapping[str, Mapping[str, int]]
) -> dict[str, SplitInfo]:
    """Write meta.json, once the token files are complete.

    Args:
        folder: Folder of the token files.
        tokenizer: Tokenizer that made them.
        counts: Fields of the `SplitInfo` of each split, without the digest.

    Returns:
        The contents of each split.
    """
    splits = {
        split: SplitInfo(**fields, sha256=file_digest(token_file(folder, split), "sha256"))
        for split, fields in counts.items()
    }
    meta = {
        "dtype": token_dtype(tokenizer.vocab_size).name,
        "vocab_size": tokenizer.vocab_size,
        "vocab_sha256": tokenizer.sha256(),
        "splits": {split: asdict(info) for split, info in splits.items()},
    }
    text = json.dumps({**meta, "sha256": _digest(meta)}, indent=1)
    atomic_write(folder / META, text + "\n")
    return splits


def _digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()


class Tokens:
    """Token files of a folder, verified and memory-mapped.

    Args:
        folder: Folder with the token files.
        tokenizer: Tokenizer that must have made them, if given.

    Attributes:
        ids: Ids of each split, `ids["train"]` (N,) and `ids["val"]`.
        info: `SplitInfo` of each split.

    Raises:
        UserError: A file is missing or has changed, or the vocabulary is another one.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer | None = None):
        advice = "run the stage prepare"
        try:
            with read_errors(folder / META, advice):
                meta = parse_json((folder / META).read_bytes())
            if meta.pop("sha256") != _digest(meta):
                raise ValueError("the digest differs")
            dtype = np.dtype(meta["dtype"]).newbyteorder("<")
            vocab_size: int = meta["vocab_size"]
            self.info = {name: SplitInfo(**info) for name, info in meta["splits"].items()}
            self.vocab_sha256: str = meta["vocab_sha256"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{folder / META}: damaged, or of another version; {advice}") from None
        if tokenizer is not None and tokenizer.sha256() != self.vocab_sha256:
            raise UserError(f"{folder}: made with another vocabulary; {advice}")
        self.ids: dict[str, np.ndarray] = {}
        for name, info in self.info.items():
            file = token_file(folder, name)
            with read_errors(file, advice):
                if file_digest(file, "sha256") != info.sha256:
                    raise UserError(f"{file}: has changed since it was written; {advice}")
                # an empty file cannot be mapped
                ids = np.memmap(file, dtype, mode="r") if info.tokens else np.empty(0, dtype)
            if ids.max(initial=0) >= vocab_size:
                raise UserError(f"{file}: contains ids beyond the vocabulary; {advice}")
            self.ids[name] = ids

    @property
    def val_split(self) -> str:
        """Split for validation: the training split if nothing is held out."""
        return "val" if self.info["val"].documents else "train"

    def sha256(self, splits: Iterable[str] = ("train", "val")) -> str:
        """Return a fingerprint of the tokens of `splits` and the vocabulary."""
        parts = [self.vocab_sha256, *(self.info[name].sha256 for name in splits)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()
