"""Subword tokenizer: byte pair encoding with the library `tokenizers`."""

import codecs
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from minigpt.common.text import NORMALIZATION_FORMS, Normalization
from minigpt.tokenizer.base import BOS, EOS, SPECIAL_TOKENS, UNK, Decoder, Tokenizer
from minigpt.tokenizer.normalization import LONE_SURROGATE
from minigpt.tokenizer.word_cache import WordCache

if TYPE_CHECKING:
    import tokenizers


class ByteDecoder(Decoder):
    """Buffers bytes until a UTF-8 character is complete; one that never is becomes U+FFFD."""

    def __init__(self, token_strings: list[str]):
        super().__init__(token_strings)
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._bytes.decode(super().feed(token).encode("utf-8", "surrogateescape"))

    def end(self) -> str:
        return self._bytes.decode(b"", final=True)


# The byte of each character in GPT-2's tokens: visible Latin-1 characters stand for themselves,
# characters from U+0100 on for the other bytes.
VISIBLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
OTHERS = [byte for byte in range(256) if byte not in VISIBLE]
BYTE_OF = {chr(byte): byte for byte in VISIBLE}
BYTE_OF |= {chr(256 + i): byte for i, byte in enumerate(OTHERS)}

MAX_WORD_LENGTH = 1000  # characters of a word or of white space in training


class BPETokenizer(Tokenizer):
    """Byte pair encoding (Sennrich et al., arXiv:1508.07909) over bytes, as in GPT-2.

    Text is split into words, numbers and punctuation, each with the space before it, and these
    into bytes. Training repeatedly merges the most frequent pair of neighbors into a new token.
    Every text consists of bytes, so nothing becomes <unk>, except a lone surrogate, which is not a
    character. The library `tokenizers` trains and encodes; `to_dict` returns its own format.

    >>> tokenizer = BPETokenizer(vocab_size=262)
    >>> _ = tokenizer.build_vocab(["low lower lowest"])
    >>> ids = tokenizer.encode("slow", add_special_tokens=False)
    >>> [tokenizer.token_strings[token] for token in ids]
    ['s', 'low']

    Args:
        vocab_size: Maximum size of the vocabulary, ≥ 260: 4 special tokens and 256 bytes.
        normalization: Unicode normalization form of every text.
        lowercase: Convert every text to lower case.
    """

    kind = "bpe"

    def __init__(
        self, vocab_size: int = 1024, normalization: Normalization = "none", lowercase: bool = False
    ):
        self.normalization, self.lowercase, self._max_size = normalization, lowercase, vocab_size
        self.build_vocab(())

    def build_vocab(self, texts: Iterable[str], min_freq: int = 1) -> Counter[str]:
        """Build the vocabulary by merging pairs that occur at least `min_freq` times.

        Equal texts give an equal vocabulary.

        Returns:
            How often each character occurs.
        """
        from tokenizers import Regex
        from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
        from tokenizers.trainers import BpeTrainer

        trainer = BpeTrainer(
            vocab_size=self._max_size,
            min_frequency=min_freq,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        )
        counts: Counter[str] = Counter()

        def parts() -> Iterator[str]:
            for text in texts:
                counts.update(self.normalize(text))
                yield from LONE_SURROGATE.split(text)

        library = _byte_level_library(self.normalization, self.lowercase)
        # The time of training grows with the square of the longest word, so words are split there.
        words = library.pre_tokenizer
        long_words = Split(Regex(rf"\S{{{MAX_WORD_LENGTH}}}|\s{{{MAX_WORD_LENGTH}}}"), "isolated")
        library.pre_tokenizer = Sequence([long_words, words])
        library.train_from_iterator(parts(), trainer)
        library.pre_tokenizer = words
        # The special tokens stay in the vocabulary, but text that spells one is not matched.
        self._set_vocabulary({**json.loads(library.to_str()), "added_tokens": []})
        return counts

    def _set_vocabulary(self, values: dict[str, Any]) -> None:
        import tokenizers

        self._values = values
        self._library = tokenizers.Tokenizer.from_str(json.dumps(values))
        self._cache = WordCache(self.encode_uncached)
        tokens = list(values["model"]["vocab"])[len(SPECIAL_TOKENS) :]
        token_bytes = [bytes(BYTE_OF[character] for character in token) for token in tokens]
        self.token_strings = [""] * len(SPECIAL_TOKENS) + [
            data.decode("utf-8", "surrogateescape") for data in token_bytes
        ]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = self.encode_batch([text])[0].tolist()
        return [BOS, *ids, EOS] if add_special_tokens else ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return self._cache.encode_batch(texts)

    def encode_uncached(self, texts: list[str]) -> list[np.ndarray]:
        """Like `encode_batch`, without the cache of words: slower for texts that repeat words."""
        parts = [LONE_SURROGATE.split(text) for text in texts]
        # "fast" omits the offsets, which would take most of the time
        flat = list(chain.from_iterable(parts))
        encodings = iter(self._library.encode_batch_fast(flat, add_special_tokens=False))
        # <unk> for the lone surrogate before each part of a text, except the first
        return [
            np.array([i for _ in text for i in (UNK, *next(encodings).ids)][1:], dtype=np.int64)
            for text in parts
        ]

    def decoder(self) -> Decoder:
        return ByteDecoder(self.token_strings)

    def unknown(self, text: str) -> list[str]:
        return sorted(set(LONE_SURROGATE.findall(text)))

    def to_dict(self) -> dict[str, Any]:
        return self._values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        try:
            steps = [step["type"] for step in values["normalizer"]["normalizers"]]
            form: Normalization = next(
                (form for form in NORMALIZATION_FORMS if form in steps), "none"
            )
            vocab = values["model"]["vocab"]
            tokenizer = cls(len(vocab), form, "Lowercase" in steps)
            # first, because the library panics on merges that do not fit settings or vocabulary
            merges = [
                merge.split(" ") if isinstance(merge, str) else merge
                for merge in values["model"]["merges"]
            ]
            valid = (
                _settings(values) == _settings(tokenizer.to_dict())
                and list(vocab.values()) == list(range(len(vocab)))
                and BYTE_OF.keys() <= vocab.keys()
                and tuple(vocab)[: len(SPECIAL_TOKENS)] == SPECIAL_TOKENS
                and all({left, right, left + right} <= vocab.keys() for left, right in merges)
            )
            if valid:
                tokenizer._set_vocabulary(values)
        except ImportError:
            raise
        except Exception:  # the library raises no narrower class
            valid = False
        if not valid:
            raise ValueError(
                "not a byte-level BPE vocabulary with the special tokens <pad>, <unk>, <bos>, <eos>"
            )
        return tokenizer


def _settings(values: dict[str, Any]) -> Any:
    """Return the library's configuration in `values`, without vocabulary and merges."""
    from tokenizers import Tokenizer

    model = {**values["model"], "vocab": {}, "merges": []}
    return json.loads(Tokenizer.from_str(json.dumps({**values, "model": model})).to_str())


def _byte_level_library(normalization: Normalization, lowercase: bool) -> "tokenizers.Tokenizer":
    """Return the library's tokenizer without a vocabulary; it normalizes like `normalize`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    form = [] if normalization == "none" else [getattr(normalizers, normalization)()]
    library = Tokenizer(models.BPE())
    library.normalizer = normalizers.Sequence(
        [*form, normalizers.Lowercase(), *form] if lowercase else form
    )
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    # for other programs that load the file: <bos> text <eos>
    library.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return library
