"""Character-level tokenizer: one id per character."""

import contextlib
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from minigpt.common.parallel import BATCH, batched_by_size, parallel_map
from minigpt.common.text import NORMALIZATION_FORMS, Normalization
from minigpt.tokenizer.base import SPECIAL_TOKENS, UNK, Tokenizer

if TYPE_CHECKING:
    pass


class CharTokenizer(Tokenizer):
    """One id a character, the characters in sorted order.

    >>> tokenizer = CharTokenizer("abc")
    >>> tokenizer.encode("cab!")
    [2, 6, 4, 5, 1, 3]
    >>> tokenizer.decode([2, 6, 4, 5, 1, 3])
    'cab'
    """

    kind = "char"

    def __init__(
        self,
        characters: Iterable[str] = (),
        normalization: Normalization = "none",
        lowercase: bool = False,
    ):
        """`characters`: the characters of the vocabulary, in any order."""
        self.normalization, self.lowercase = normalization, lowercase
        self._set_vocabulary(characters)

    def _set_vocabulary(self, characters: Iterable[str]) -> None:
        self.characters = sorted(set(characters))
        if any(len(character) != 1 for character in self.characters):
            raise ValueError("each entry of a character vocabulary is one character")
        self.token_strings = [""] * len(SPECIAL_TOKENS) + self.characters
        # code point → id, as a table, so that a whole text is encoded at once; its last entry stands for all beyond
        points = [ord(character) for character in self.characters]
        self._table = np.full(
            max([255, *points]) + 2, UNK, dtype=np.min_scalar_type(self.vocab_size)
        )
        self._table[points] = np.arange(len(points)) + len(SPECIAL_TOKENS)
        # the first 256 code points as bytes → ids as bytes (they come first, so nearly always they fit)
        self._latin_table = bytes(np.minimum(self._table[:256], 255).tolist())
        self._latin_fits = bool(self._table[:256].max() < 256)

    def build_vocab(self, texts: Iterable[str], min_freq: int = 1) -> Counter[str]:
        """Take the vocabulary from `texts`: every character that occurs `min_freq` times or more.

        Returns how often each character occurs, the rarer ones (which become `<unk>`) included.
        """
        counts: Counter[str] = Counter()
        for found in parallel_map(self._count, batched_by_size(texts, len, BATCH)):
            counts.update(found)
        self._set_vocabulary(character for character, count in counts.items() if count >= min_freq)
        return counts

    def _count(self, texts: list[str]) -> dict[str, int]:
        counts = np.bincount(_code_points("".join(map(self.normalize, texts))))
        return {chr(point): int(counts[point]) for point in np.flatnonzero(counts)}

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        texts = [self.normalize(text) for text in texts]
        ids = self._lookup("".join(texts))
        return (
            np.split(ids, np.cumsum([len(text) for text in texts[:-1]], dtype=np.int64))
            if texts
            else []
        )

    def _lookup(self, text: str) -> np.ndarray:
        if self._latin_fits:
            with contextlib.suppress(
                UnicodeEncodeError
            ):  # several times faster than the way for all others
                return np.frombuffer(
                    text.encode("latin-1").translate(self._latin_table), dtype=np.uint8
                )
        return self._table.take(_code_points(text), mode="clip")

    def unknown(self, text: str) -> list[str]:
        return sorted(set(self.normalize(text)) - set(self.characters))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "characters": "".join(self.characters)}

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": self.kind,
            "normalization": self.normalization,
            "lowercase": self.lowercase,
            "special_tokens": list(SPECIAL_TOKENS),
            "characters": self.characters,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        characters = values.get("characters")
        if values.get("type") != "char" or values.get("special_tokens") != list(SPECIAL_TOKENS):
            raise ValueError(
                "not a character vocabulary with the special tokens <pad>, <unk>, <bos>, <eos>"
            )
        if not isinstance(characters, list) or not all(
            isinstance(entry, str) for entry in characters
        ):
            raise ValueError("'characters' is not a list of characters")
        normalization = next(
            (form for form in NORMALIZATION_FORMS if form == values.get("normalization")), None
        )
        lowercase = values.get("lowercase")
        if normalization is None or not isinstance(lowercase, bool):
            raise ValueError("'normalization' or 'lowercase' is missing or unknown")
        tokenizer = cls(characters, normalization, lowercase)
        if tokenizer.characters != characters:
            raise ValueError("'characters' is not sorted, or holds one twice")
        return tokenizer


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
