"""Cache of the ids of words, for encoders that never merge across white space."""

import re
from collections.abc import Callable
from itertools import chain

import numpy as np

# A word with the white space before it. Byte-level BPE always cuts the text between a character and
# white space after it, and no token depends on what is beyond such a cut.
WORD = re.compile("[\t-\r ]*[^\t-\r ]+|[\t-\r ]+")
# White space outside `WORD`, and what some versions of Unicode regard as white space.
OTHER_SPACE = re.compile(
    "[\x1c-\x1f\x85\xa0\u1680\u180e\u2000-\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff]"
)
MAX_WORDS = 1 << 17  # in the cache
MAX_WORD_LENGTH = 32  # longer words rarely occur again


class WordCache:
    """Encode texts word by word, and each distinct word once.

    Args:
        encode: Returns the ids of each text; those of a text are those of its words.
    """

    def __init__(self, encode: Callable[[list[str]], list[np.ndarray]]):
        self._encode = encode
        self._ids: dict[str, bytes] = {}  # of each word, as 32-bit integers

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text, (T,)."""
        ids = self._ids
        texts_words = [_words(text) for text in texts]
        missing = [word for word in set(chain.from_iterable(texts_words)) if word not in ids]
        for word, array in zip(missing, self._encode(missing), strict=True):
            ids[word] = array.astype(np.uint32).tobytes()
        encoded = [b"".join([ids[word] for word in words]) for words in texts_words]
        if len(ids) > MAX_WORDS:
            ids.clear()
        for word in missing:
            if len(word) > MAX_WORD_LENGTH:
                ids.pop(word, None)
        return [np.frombuffer(data, np.uint32).astype(np.int64) for data in encoded]


def _words(text: str) -> list[str]:
    return [text] if OTHER_SPACE.search(text) else WORD.findall(text)
