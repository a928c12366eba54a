"""Token files: the ids of a corpus on disk, one file per split, and their description."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from minigpt.common.errors import UserError
from minigpt.tokenizer import EOS, Tokenizer


@dataclass(frozen=True)
class SplitInfo:
    """What a token file holds: `characters` and `bytes` (UTF-8) count its text, `unknown` the <unk> in it."""

    documents: int
    tokens: int
    characters: int
    bytes: int
    unknown: int
    sha256: str


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer that holds every id, little-endian."""
    return np.min_scalar_type(vocab_size - 1).newbyteorder("<")


class Tokens:
    """The token files of a folder, memory-mapped: `ids["train"]`, `ids["val"]`, `info[…]`.

    Raises:
        UserError: a file is missing, or does not have the length or the vocabulary `meta.json` says.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer | None = None):
        again = "run `dvc repro prepare`"
        try:
            meta = json.loads((folder / "meta.json").read_text())
            dtype = np.dtype(meta["dtype"]).newbyteorder("<")
            self.info = {name: SplitInfo(**info) for name, info in meta["splits"].items()}
            self.vocab_sha256: str = meta["vocab_sha256"]
        except FileNotFoundError:
            raise UserError(f"{folder / 'meta.json'}: not found; {again}") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{folder / 'meta.json'}: damaged; {again}") from None
        if tokenizer is not None and tokenizer.sha256() != self.vocab_sha256:
            raise UserError(f"{folder}: made with another vocabulary; {again}")
        self.ids: dict[str, np.ndarray] = {}
        for name, info in self.info.items():
            file = folder / f"{name}.bin"
            if not file.exists() or file.stat().st_size != info.tokens * dtype.itemsize:
                raise UserError(f"{file}: missing, or not {info.tokens} tokens of {dtype}; {again}")
            # an empty file cannot be mapped
            self.ids[name] = np.memmap(file, dtype, mode="r") if info.tokens else np.empty(0, dtype)

    @property
    def val_split(self) -> str:
        """The split that validation reads: the training split itself where nothing is held out."""
        return "val" if self.info["val"].documents else "train"

    def sha256(self, splits: Iterable[str] = ("train", "val")) -> str:
        """A fingerprint of the tokens of `splits` and the vocabulary together."""
        parts = [self.vocab_sha256, *(self.info[name].sha256 for name in splits)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


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

    def add(self, data: bytes, counts: Mapping[str, int]) -> None:
        """Append `data`, the ids of documents; `counts` has the other fields of `SplitInfo` for them."""
        for name in self._counts:
            self._counts[name] += counts[name]
        self._write(data)

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
