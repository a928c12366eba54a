"""Text ↔ ids, one id a character.

Ids 0 to 3 are special tokens; the characters follow in sorted order. A special token is an id and
never text: encoding a text that spells "<eos>" gives the ids of its five characters.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from minigpt.errors import UserError

SPECIAL_TOKENS = ("<pad>", "<unk>", "<bos>", "<eos>")
PAD, UNK, BOS, EOS = range(4)


class CharTokenizer:
    """A character-level tokenizer.

    >>> tokenizer = CharTokenizer("abc")
    >>> tokenizer.encode("cab!")
    [2, 6, 4, 5, 1, 3]
    >>> tokenizer.decode([2, 6, 4, 5, 1, 3])
    'cab'
    """

    def __init__(self, characters: Iterable[str] = ()):
        """`characters`: the characters of the vocabulary, in any order."""
        self._set_vocabulary(characters)

    def _set_vocabulary(self, characters: Iterable[str]) -> None:
        self.characters = sorted(set(characters))
        if any(len(character) != 1 for character in self.characters):
            raise ValueError("each entry of a character vocabulary is one character")
        # code point → id, as a table, so that NumPy encodes a whole text at once
        points = [ord(character) for character in self.characters]
        self._ids = np.full(max(points, default=0) + 2, UNK, dtype=np.int64)
        self._ids[points] = np.arange(len(points)) + len(SPECIAL_TOKENS)

    def build_vocab(self, texts: Iterable[str], min_freq: int = 1) -> Counter[str]:
        """Take the vocabulary from `texts`: every character that occurs `min_freq` times or more.

        Returns how often each character occurs, the rarer ones (which become `<unk>`) included.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        self._set_vocabulary(character for character, count in counts.items() if count >= min_freq)
        return counts

    @property
    def vocab_size(self) -> int:
        return len(SPECIAL_TOKENS) + len(self.characters)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Text → ids, between `<bos>` and `<eos>` unless `add_special_tokens` is false."""
        return self.encode_array(text, add_special_tokens).tolist()

    def encode_array(self, text: str, add_special_tokens: bool = True) -> np.ndarray:
        """As `encode`, as an int64 array (T,)."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        # the table's last entry is <unk>: every code point beyond the table lands there
        ids = self._ids[np.minimum(points, len(self._ids) - 1)]
        return np.concatenate(([BOS], ids, [EOS])) if add_special_tokens else ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """As `encode_array` without special tokens, for many texts in one go."""
        ends = np.cumsum([len(text) for text in texts])
        return np.split(self.encode_array("".join(texts), add_special_tokens=False), ends[:-1])

    def decode(self, ids: Iterable[int]) -> str:
        """Ids → text; special tokens are dropped.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        first = len(SPECIAL_TOKENS)
        text = []
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"id {token} is outside the vocabulary of {self.vocab_size}")
            if token >= first:
                text.append(self.characters[token - first])
        return "".join(text)

    def unknown(self, text: str) -> list[str]:
        """The distinct characters of `text` that become `<unk>`, sorted."""
        return sorted(set(text) - set(self.characters))

    def to_dict(self) -> dict:
        return {"type": "char", "special_tokens": list(SPECIAL_TOKENS), "characters": self.characters}

    @classmethod
    def from_dict(cls, values: dict) -> "CharTokenizer":
        """Raises ValueError where `values` is not what `to_dict` writes."""
        characters = values.get("characters")
        if values.get("type") != "char" or values.get("special_tokens") != list(SPECIAL_TOKENS):
            raise ValueError("not a character vocabulary with the special tokens <pad>, <unk>, <bos>, <eos>")
        if not isinstance(characters, list) or not all(isinstance(entry, str) for entry in characters):
            raise ValueError("'characters' is not a list of characters")
        tokenizer = cls(characters)
        if tokenizer.characters != characters:
            raise ValueError("'characters' is not sorted, or holds one twice")
        return tokenizer

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "CharTokenizer":
        """Raises UserError where `path` is missing or damaged."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(f"{path}: not found; run `dvc repro build_vocab`") from None
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path}: not a vocabulary: {error}; run `dvc repro build_vocab`") from None

    def sha256(self) -> str:
        """A fingerprint of the vocabulary: equal for equal vocabularies only."""
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).hexdigest()


def printable(characters: Sequence[str]) -> str:
    """Characters for a message: quoted, control characters escaped."""
    return ", ".join(repr(character) for character in characters)
