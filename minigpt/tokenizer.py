"""Text ↔ ids: one id a character, or one a subword.

Ids 0 to 3 are special tokens; the vocabulary follows. A special token is an id and never text:
encoding a text that spells "<eos>" gives the ids of what it is spelt with.
"""

import codecs
import contextlib
import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from minigpt.errors import UserError
from minigpt.parallel import BATCH, batched_by_size, parallel_map
from minigpt.text import FORMS, LONE_SURROGATE, Normalization, normalize

if TYPE_CHECKING:
    import tokenizers

SPECIAL_TOKENS = ("<pad>", "<unk>", "<bos>", "<eos>")
PAD, UNK, BOS, EOS = range(4)


class Tokenizer(ABC):
    """What both tokenizers have in common.

    Attributes:
        kind: "char" or "bpe".
        normalization, lowercase: what `encode` does to a text first; see `minigpt.text.normalize`.
        pieces: the text that each id stands for, "" for special tokens. Bytes that are only part of
            a character are lone surrogates in it (PEP 383).
    """

    kind: str
    normalization: Normalization
    lowercase: bool
    pieces: list[str]

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

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
        return Decoder(self.pieces)

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


class ByteDecoder(Decoder):
    """Bytes wait until their character is whole; one that never is becomes U+FFFD."""

    def __init__(self, pieces: list[str]):
        super().__init__(pieces)
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._bytes.decode(super().feed(token).encode("utf-8", "surrogateescape"))

    def end(self) -> str:
        return self._bytes.decode(b"", final=True)


class CharTokenizer(Tokenizer):
    """One id a character, the characters in sorted order.

    >>> tokenizer = CharTokenizer("abc")
    >>> tokenizer.encode("cab!")
    [2, 6, 4, 5, 1, 3]
    >>> tokenizer.decode([2, 6, 4, 5, 1, 3])
    'cab'
    """

    kind = "char"

    def __init__(self, characters: Iterable[str] = (), normalization: Normalization = "none", lowercase: bool = False):
        """`characters`: the characters of the vocabulary, in any order."""
        self.normalization, self.lowercase = normalization, lowercase
        self._set_vocabulary(characters)

    def _set_vocabulary(self, characters: Iterable[str]) -> None:
        self.characters = sorted(set(characters))
        if any(len(character) != 1 for character in self.characters):
            raise ValueError("each entry of a character vocabulary is one character")
        self.pieces = [""] * len(SPECIAL_TOKENS) + self.characters
        # code point → id, as a table, so that a whole text is encoded at once; its last entry stands for all beyond
        points = [ord(character) for character in self.characters]
        self._table = np.full(max([255, *points]) + 2, UNK, dtype=np.min_scalar_type(self.vocab_size))
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
        return np.split(ids, np.cumsum([len(text) for text in texts[:-1]], dtype=np.int64)) if texts else []

    def _lookup(self, text: str) -> np.ndarray:
        if self._latin_fits:
            with contextlib.suppress(UnicodeEncodeError):  # several times faster than the way for all others
                return np.frombuffer(text.encode("latin-1").translate(self._latin_table), dtype=np.uint8)
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
            raise ValueError("not a character vocabulary with the special tokens <pad>, <unk>, <bos>, <eos>")
        if not isinstance(characters, list) or not all(isinstance(entry, str) for entry in characters):
            raise ValueError("'characters' is not a list of characters")
        normalization = next((form for form in FORMS if form == values.get("normalization")), None)
        lowercase = values.get("lowercase")
        if normalization is None or not isinstance(lowercase, bool):
            raise ValueError("'normalization' or 'lowercase' is missing or unknown")
        tokenizer = cls(characters, normalization, lowercase)
        if tokenizer.characters != characters:
            raise ValueError("'characters' is not sorted, or holds one twice")
        return tokenizer


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _byte_alphabet() -> dict[str, int]:
    """How GPT-2 and the library write the 256 bytes in tokens: visible ones as they are, others from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()


class BPETokenizer(Tokenizer):
    """One id a subword: byte pair encoding (Sennrich et al., arXiv:1508.07909) over bytes, as in GPT-2.

    A text is cut into words, numbers and punctuation, each with the space before it, and these into
    the 256 bytes. Training merges the commonest pair of neighbours into a new token, again and again.
    Every text can be written in bytes, so nothing becomes `<unk>` (but a lone surrogate, which is no
    character). The library `tokenizers` trains and encodes; `to_dict` is its own format, complete.

    >>> tokenizer = BPETokenizer(vocab_size=262)
    >>> _ = tokenizer.build_vocab(["low lower lowest"])
    >>> [tokenizer.pieces[token] for token in tokenizer.encode("slow", add_special_tokens=False)]
    ['s', 'low']
    """

    kind = "bpe"

    def __init__(self, vocab_size: int = 1024, normalization: Normalization = "none", lowercase: bool = False):
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
        self.pieces = [""] * len(SPECIAL_TOKENS) + [piece.decode("utf-8", "surrogateescape") for piece in written]

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        parts = [LONE_SURROGATE.split(text) for text in texts]
        # "fast" leaves out the offsets, which would take most of the time
        encodings = iter(self._library.encode_batch_fast(list(chain.from_iterable(parts)), add_special_tokens=False))
        return [_join_by_unk([next(encodings).ids for _ in text]) for text in parts]

    def decoder(self) -> Decoder:
        return ByteDecoder(self.pieces)

    def unknown(self, text: str) -> list[str]:
        return sorted(set(LONE_SURROGATE.findall(text)))

    def to_dict(self) -> dict[str, Any]:
        return self._values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        try:
            steps = [step["type"] for step in values["normalizer"]["normalizers"]]
            form: Normalization = next((form for form in FORMS if form in steps), "none")
            vocab = values["model"]["vocab"]
            whole = list(vocab.values()) == list(range(len(vocab))) and BYTE_OF.keys() <= vocab.keys()
            valid = whole and tuple(vocab)[: len(SPECIAL_TOKENS)] == SPECIAL_TOKENS
            tokenizer = cls(len(vocab), form, "Lowercase" in steps)
            frame = tokenizer._frame()
            tokenizer._set_vocabulary(values)
        except ImportError:
            raise
        except Exception:  # the library's own have no narrower class
            valid = False
        if not valid or tokenizer._frame() != frame:
            raise ValueError("not a byte-level BPE vocabulary with the special tokens <pad>, <unk>, <bos>, <eos>")
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
    """The library's tokenizer without a vocabulary; it does to a text what `minigpt.text.normalize` does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    form = [] if normalization == "none" else [getattr(normalizers, normalization)()]
    library = Tokenizer(models.BPE())
    library.normalizer = normalizers.Sequence([*form, normalizers.Lowercase(), *form] if lowercase else form)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    # for others who read the file: <bos> text <eos>
    library.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return library


def tokenizer_from_dict(values: dict[str, Any]) -> Tokenizer:
    """The tokenizer that gave `values` by `to_dict`; raises ValueError where none did."""
    if not isinstance(values, dict):
        raise ValueError("no tokenizer")
    return BPETokenizer.from_dict(values) if "model" in values else CharTokenizer.from_dict(values)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that was saved to `path`; raises UserError where it is missing or damaged."""
    try:
        return tokenizer_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro build_vocab`") from None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a vocabulary: {error}; run `dvc repro build_vocab`") from None


def printable(characters: Sequence[str]) -> str:
    """Characters for a message: quoted, control characters escaped."""
    return ", ".join(repr(character) for character in characters)
