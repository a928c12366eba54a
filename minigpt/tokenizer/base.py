"""Interface shared by the tokenizers, and the special tokens."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from minigpt.common.files import atomic_write
from minigpt.common.text import Normalization
from minigpt.tokenizer.normalization import normalize

SPECIAL_TOKENS = ("<pad>", "<unk>", "<bos>", "<eos>")
PAD, UNK, BOS, EOS = range(4)


class Tokenizer(ABC):
    """Base class of the tokenizers.

    Attributes:
        kind: "char" or "bpe".
        normalization: Unicode normalization form that `encode` applies first.
        lowercase: Convert text to lower case first.
        token_strings: Text of each id, "" for special tokens. Bytes that are only part of a
            character appear as lone surrogates (PEP 383).
    """

    kind: str
    normalization: Normalization
    lowercase: bool
    token_strings: list[str]

    @property
    def vocab_size(self) -> int:
        return len(self.token_strings)

    @abstractmethod
    def build_vocab(self, texts: Iterable[str], min_freq: int = 1) -> Counter[str]:
        """Build the vocabulary and return how often each normalized character occurs."""

    @abstractmethod
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of `text`, by default between <bos> and <eos>."""

    @abstractmethod
    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text as an integer array (T,), without <bos> and <eos>.

        Gives the same ids as `encode`, and is faster for many or long texts.
        """

    @abstractmethod
    def unknown(self, text: str) -> list[str]:
        """Return the distinct characters of `text` that become <unk>, sorted."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the tokenizer as values that JSON can hold."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the tokenizer whose `to_dict` gave `values`.

        Raises:
            ValueError: No tokenizer of this class gives such values.
        """

    def normalize(self, text: str) -> str:
        return normalize(text, self.normalization, self.lowercase)

    def encode_array(self, text: str, add_special_tokens: bool = True) -> np.ndarray:
        """Like `encode`, as an int64 array (T,)."""
        return np.array(self.encode(text, add_special_tokens), dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; special tokens have none.

        Raises:
            ValueError: An id is outside the vocabulary.
        """
        return "".join(self.stream(ids))

    def decoder(self) -> "Decoder":
        """Return a decoder for ids that arrive one at a time."""
        return Decoder(self.token_strings)

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Like `decode`, but yield text as soon as its ids arrive."""
        decoder = self.decoder()
        yield from filter(None, map(decoder.feed, ids))
        yield from filter(None, [decoder.end()])

    def save(self, path: Path) -> None:
        """Write the tokenizer to `path` atomically."""
        atomic_write(path, json.dumps(self.to_dict(), indent=1) + "\n")

    def sha256(self) -> str:
        """Return a fingerprint: equal only for tokenizers that encode every text alike."""
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return a summary to show to users."""
        return {
            "type": self.kind,
            "size": self.vocab_size,
            "normalization": self.normalization,
            "lowercase": self.lowercase,
        }


class Decoder:
    """Incremental decoder: ids → text, one id at a time."""

    def __init__(self, token_strings: list[str]):
        self._token_strings = token_strings

    def feed(self, token: int) -> str:
        """Return the text that `token` adds.

        Raises:
            ValueError: `token` is outside the vocabulary.
        """
        if not 0 <= token < len(self._token_strings):
            raise ValueError(f"id {token} is outside the vocabulary of {len(self._token_strings)}")
        return self._token_strings[token]

    def end(self) -> str:
        """Flush the decoder and return the remaining text."""
        return ""
