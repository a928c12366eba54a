"""Character-level tokenizer: one id per character.

The lesson of this package. The vocabulary is the sorted list of characters that occur in the
training text, behind the special tokens:

    id         0      1      2      3      4    5    6   ...
    token    <pad>  <unk>  <bos>  <eos>   ' '  '!'  '.'  ...

`encode` looks up each character, `decode` concatenates the strings of the ids. `char_table.py`
does the same for whole corpora, fast.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np

from minigpt.common.parallel import BATCH_CHARACTERS, batched_by_size, parallel_map
from minigpt.common.text import NORMALIZATION_FORMS, Normalization
from minigpt.tokenizer.base import BOS, EOS, SPECIAL_TOKENS, UNK, Tokenizer
from minigpt.tokenizer.char_table import CharTable, count_characters


class CharTokenizer(Tokenizer):
    """One id per character, the characters in sorted order.

    >>> tokenizer = CharTokenizer("abc")
    >>> tokenizer.encode("cab!")
    [2, 6, 4, 5, 1, 3]
    >>> tokenizer.decode([2, 6, 4, 5, 1, 3])
    'cab'

    Args:
        characters: Characters of the vocabulary, in any order.
        normalization: Unicode normalization form of every text.
        lowercase: Convert every text to lower case.
    """

    kind = "char"

    def __init__(
        self,
        characters: Iterable[str] = (),
        normalization: Normalization = "none",
        lowercase: bool = False,
    ):
        self.normalization, self.lowercase = normalization, lowercase
        self._set_vocabulary(characters)

    def _set_vocabulary(self, characters: Iterable[str]) -> None:
        # Sorting makes the ids independent of the order in which the texts are read.
        self.characters = sorted(set(characters))
        if any(len(character) != 1 for character in self.characters):
            raise ValueError("each entry of a character vocabulary is one character")
        # id → string: special tokens first, so that their ids are the same in every vocabulary.
        self.token_strings = [""] * len(SPECIAL_TOKENS) + self.characters
        # character → id, the inverse.
        first = len(SPECIAL_TOKENS)
        self.ids = {character: first + i for i, character in enumerate(self.characters)}
        self._table = CharTable(self.ids)

    def build_vocab(self, texts: Iterable[str], min_freq: int = 1) -> Counter[str]:
        """Build the vocabulary from the characters that occur at least `min_freq` times in `texts`.

        Returns:
            How often each character occurs, including the rarer ones that become <unk>.
        """
        # Batches of texts are counted in worker processes.
        batches = batched_by_size(texts, len, BATCH_CHARACTERS)
        return self.build_from_counts(parallel_map(self._count, batches), min_freq)

    def build_from_counts(
        self, batches: Iterable[Mapping[str, int]], min_freq: int = 1
    ) -> Counter[str]:
        """Like `build_vocab`, from the counts of characters in parts of the text."""
        counts: Counter[str] = Counter()
        for batch in batches:
            counts.update(batch)
        self._set_vocabulary(character for character, count in counts.items() if count >= min_freq)
        return counts

    def _count(self, texts: list[str]) -> dict[str, int]:
        return count_characters("".join(map(self.normalize, texts)))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        # A character outside the vocabulary becomes <unk>.
        ids = [self.ids.get(character, UNK) for character in self.normalize(text)]
        # <bos> and <eos> mark where a document begins and ends.
        return [BOS, *ids, EOS] if add_special_tokens else ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return self._table.encode_batch([self.normalize(text) for text in texts])

    def unknown(self, text: str) -> list[str]:
        return sorted(set(self.normalize(text)) - self.ids.keys())

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
        try:
            characters, form = values["characters"], values["normalization"]
            tokenizer = cls(characters, form, lowercase=bool(values["lowercase"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"a key is missing or has the wrong type ({error})") from None
        # compared as JSON, which distinguishes true from 1
        if json.dumps(tokenizer.to_dict()) != json.dumps(values):
            raise ValueError(
                "not a character vocabulary with the special tokens <pad>, <unk>, <bos>, <eos> and "
                "characters in sorted order, each once"
            )
        if tokenizer.normalization not in NORMALIZATION_FORMS:
            raise ValueError(f"unknown normalization {tokenizer.normalization!r}")
        return tokenizer
