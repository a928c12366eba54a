"""Subword tokenizer: byte pair encoding by the library `tokenizers`."""

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

if TYPE_CHECKING:
    import tokenizers


class ByteDecoder(Decoder):
    """Bytes wait until their character is whole; one that never is becomes U+FFFD."""

    def __init__(self, pieces: list[str]):
        super().__init__(pieces)
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._bytes.decode(super().feed(token).encode("utf-8", "surrogateescape"))

    def end(self) -> str:
        return self._bytes.decode(b"", final=True)


def _byte_alphabet() -> dict[str, int]:
    """How GPT-2 and the library write the 256 bytes in tokens: visible ones as they are, others from U+0100 on."""
    visible = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


BYTE_OF = _byte_alphabet()


class BPETokenizer(Tokenizer):
    """One id a subword: byte pair encoding (Sennrich et al., arXiv:1508.07909) over bytes, as in GPT-2.

    A text is cut into words, numbers and punctuation, each with the space before it, and these into
    the 256 bytes. Training merges the commonest pair of neighbours into a new token, again and again.
    Every text can be written in bytes, so nothing becomes `<unk>` (but a lone surrogate, which is no
    character). The library `tokenizers` trains and encodes; `to_dict` is its own format, complete.

    >>> tokenizer = BPETokenizer(vocab_size=262)
    >>> _ = tokenizer.build_vocab(["low lower lowest"])
    >>> [tokenizer.token_strings[token] for token in tokenizer.encode("slow", add_special_tokens=False)]
    ['s', 'low']
    """

    kind = "bpe"

    def __init__(
        self, vocab_size: int = 1024, normalization: Normalization = "none", lowercase: bool = False
    ):
        """`vocab_size`: the most tokens that `build_vocab` makes, ≥ 260: 4 special ones and 256 bytes."""
        self.normalization, self.lowercase, self._max_size = normalization, lowercase, vocab_size
        self.build_vocab(())

    def build_vocab(self, texts: Iterable[str], min_freq: int = 1) -> Counter[str]:
        """Take the vocabulary from `texts`: pairs that occur `min_freq` times or more are merged, the commonest first.

        Equal texts give an equal vocabulary. Returns how often each character occurs.
        """
        from tokenizers.pre_tokenizers import ByteLevel
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
        library.train_from_iterator(parts(), trainer)
        # kept in the vocabulary, but no longer looked for in texts
        self._set_vocabulary({**json.loads(library.to_str()), "added_tokens": []})
        return counts

    def _set_vocabulary(self, values: dict[str, Any]) -> None:
        import tokenizers

        self._values = values
        self._library = tokenizers.Tokenizer.from_str(json.dumps(values))
        tokens = list(values["model"]["vocab"])[len(SPECIAL_TOKENS) :]
        written = [bytes(BYTE_OF[character] for character in token) for token in tokens]
        self.token_strings = [""] * len(SPECIAL_TOKENS) + [
            piece.decode("utf-8", "surrogateescape") for piece in written
        ]

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        parts = [LONE_SURROGATE.split(text) for text in texts]
        # "fast" leaves out the offsets, which would take most of the time
        encodings = iter(
            self._library.encode_batch_fast(
                list(chain.from_iterable(parts)), add_special_tokens=False
            )
        )
        return [_join_by_unk([next(encodings).ids for _ in text]) for text in parts]

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
            whole = (
                list(vocab.values()) == list(range(len(vocab))) and BYTE_OF.keys() <= vocab.keys()
            )
            valid = whole and tuple(vocab)[: len(SPECIAL_TOKENS)] == SPECIAL_TOKENS
            tokenizer = cls(len(vocab), form, "Lowercase" in steps)
            frame = tokenizer._frame()
            tokenizer._set_vocabulary(values)
        except ImportError:
            raise
        except Exception:  # the library's own have no narrower class
            valid = False
        if not valid or tokenizer._frame() != frame:
            raise ValueError(
                "not a byte-level BPE vocabulary with the special tokens <pad>, <unk>, <bos>, <eos>"
            )
        return tokenizer

    def _frame(self) -> dict[str, Any]:
        """All that the library has been told, but the vocabulary and its merges."""
        values = json.loads(self._library.to_str())
        return {**values, "model": {**values["model"], "vocab": None, "merges": None}}


def _join_by_unk(parts: list[list[int]]) -> np.ndarray:
    """What lay between the parts of a text was a lone surrogate each."""
    first, *others = parts
    return np.array([*first, *chain.from_iterable([UNK, *part] for part in others)], dtype=np.int64)


def _byte_level_library(normalization: Normalization, lowercase: bool) -> "tokenizers.Tokenizer":
    """The library's tokenizer without a vocabulary; it does to a text what `minigpt.tokenizer.normalization.normalize` does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    form = [] if normalization == "none" else [getattr(normalizers, normalization)()]
    library = Tokenizer(models.BPE())
    library.normalizer = normalizers.Sequence(
        [*form, normalizers.Lowercase(), *form] if lowercase else form
    )
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    # for others who read the file: <bos> text <eos>
    library.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return library
