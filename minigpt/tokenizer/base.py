"""Interface shared by the tokenizers, and the special tokens."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from minigpt.common.text import Normalization
from minigpt.tokenizer.normalization import normalize

if TYPE_CHECKING:
    pass
SPECIAL_TOKENS = ("<pad>", "<unk>", "<bos>", "<eos>")

PAD, UNK, BOS, EOS = range(4)


class Tokenizer(ABC):
    """What both tokenizers have in common.

    Attributes:
        kind: "char" or "bpe".
        normalization, lowercase: what `encode` does to a text first; see `minigpt.tokenizer.normalization.normalize`.
        token_strings: the text that each id stands for, "" for special tokens. Bytes that are only part of
            a character are lone surrogates in it (PEP 383).
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
        """Take the vocabulary from `texts`; returns how often each (normalised) character occurs in them."""

    @abstractmethod
    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, without special tokens, as integer arrays (T,); faster than one by one."""

    @abstractmethod
    def unknown(self, text: str) -> list[str]:
        """The distinct characters of `text` that become `<unk>`, sorted."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """What `save` writes, and `from_dict` reads."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Raises ValueError where `values` is not what `to_dict` gives."""

    def normalize(self, text: str) -> str:
        return normalize(text, self.normalization, self.lowercase)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Text → ids, between `<bos>` and `<eos>` unless `add_special_tokens` is false."""
        return self.encode_array(text, add_special_tokens).tolist()

    def encode_array(self, text: str, add_special_tokens: bool = True) -> np.ndarray:
        """As `encode`, as an int64 array (T,)."""
        ids = self.encode_batch([text])[0].astype(np.int64)
        return np.concatenate(([BOS], ids, [EOS])) if add_special_tokens else ids

    def decode(self, ids: Iterable[int]) -> str:
        """Ids → text; special tokens are dropped.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        return "".join(self.stream(ids))

    def decoder(self) -> "Decoder":
        """For ids that come one by one."""
        return Decoder(self.token_strings)

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """As `decode`, piece by piece, while the ids come in."""
        decoder = self.decoder()
        for token in ids:
            if text := decoder.feed(token):
                yield text
        if rest := decoder.end():
            yield rest

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def sha256(self) -> str:
        """A fingerprint of the vocabulary: equal for equal vocabularies only."""
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a person wants to know of it."""
        return {
            "type": self.kind,
            "size": self.vocab_size,
            "normalization": self.normalization,
            "lowercase": self.lowercase,
        }


class Decoder:
    """Ids → text, one by one: what each adds to the text."""

    def __init__(self, pieces: list[str]):
        self._pieces = pieces

    def feed(self, token: int) -> str:
        """Raises ValueError where `token` is outside the vocabulary."""
        if not 0 <= token < len(self._pieces):
            raise ValueError(f"id {token} is outside the vocabulary of {len(self._pieces)}")
        return self._pieces[token]

    def end(self) -> str:
        """What was kept back, now that no more comes."""
        return ""
