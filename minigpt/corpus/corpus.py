"""Documents of a corpus: where each one starts and ends, which are kept, and which are held out.

The lesson of this package. Every text takes four steps on its way to the tokenizer:

1. Cut the lines of a file into documents (`cut`).
2. Normalize each document and drop the empty ones.
3. Drop documents that were seen before (`Corpus._documents`).
4. Assign each document to the training or the validation split (`split_of`).

`readers.py` reads the files, `encode.py` turns documents into token ids.

Everything streams: no file, table or list of documents is held in memory, only a document and a
line at a time (a file without line breaks is one line). The split is a pure
function of a document's content, so two stages agree on it without a shared file, and adding text
moves no earlier document to the other split.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from minigpt.common.config import DataConfig
from minigpt.common.errors import UserError
from minigpt.common.parallel import batched_by_size
from minigpt.corpus.hash_set import HashSet
from minigpt.corpus.readers import Reader
from minigpt.tokenizer.normalization import normalize

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)

CHUNK_CHARACTERS = 1 << 20  # of a stream, yielded at once


@dataclass(frozen=True)
class Document:
    """A document, or a chunk of a stream, of which the first `begins` and the last `ends`."""

    text: str
    split: Split
    begins: bool = True
    ends: bool = True


# Values of `auto`: what separates documents, and the share of them that is held out.
DEFAULTS = ("blank_line", 0.1)
BUILT_IN_DEFAULTS = {
    # Nothing is held out: all sentences together make the 40 symbols of the vocabulary.
    "data/raw/sentences.txt": ("line", 0.0),
    "data/raw/python-docs": ("file", 0.1),
    "data/raw/names.txt": ("line", 0.1),
}


class Corpus:
    """Iterable of the `Document`s that the `data` section of the parameters describes.

    After an iteration, `documents_dropped` counts the duplicates that were left out.

    Raises:
        UserError: A file is missing, unreadable, damaged or not UTF-8, a column is missing, or
            there is no text.
    """

    def __init__(self, config: DataConfig):
        self.config = config
        self.reader = Reader(config)
        name = "/".join(Path(config.path).parts[-3:])
        self.documents, self.val_fraction = BUILT_IN_DEFAULTS.get(name, DEFAULTS)
        if config.documents != "auto":
            self.documents = config.documents
        if config.val_fraction != "auto":
            self.val_fraction = config.val_fraction
        self.documents_dropped = 0

    def __iter__(self) -> Iterator[Document]:
        documents = self._stream() if self.documents == "none" else self._documents()
        first = next(documents, None)
        if first is None:
            raise UserError(
                f"{self.config.path}: no text found; set data.path to a file or folder with text"
            )
        yield first
        yield from documents

    def _documents(self) -> Iterator[Document]:
        """Yield each document once, with its split."""
        self.documents_dropped = 0
        seen = HashSet()
        for text in self._texts():
            digest = digest_of(text)
            if self.config.deduplicate and not seen.add(digest):
                self.documents_dropped += 1
                continue
            yield Document(text, split_of(digest, self.val_fraction))

    def _texts(self) -> Iterator[str]:
        """Yield the normalized text of every document that is not blank."""
        for lines in self.reader:
            for text in cut(lines, self.documents, self.config.separator):
                text = normalize(text, self.config.normalization).strip("\n")
                if text.strip():
                    yield text

    def _stream(self) -> Iterator[Document]:
        """Yield all text as one training and one validation document.

        A stream has no documents to sample from, so its end is held out.
        """
        total = sum(map(len, self._chunks()))
        border = round(total * (1 - self.val_fraction))
        position = 0
        for chunk in self._chunks():
            cut_at = max(0, min(len(chunk), border - position))
            for split, text in zip(SPLITS, (chunk[:cut_at], chunk[cut_at:]), strict=True):
                if text:
                    begins = position in (0, border)
                    position += len(text)
                    yield Document(text, split, begins, ends=position in (border, total))

    def _chunks(self) -> Iterator[str]:
        """Yield the whole text in chunks of about `CHUNK_CHARACTERS`, each of whole lines."""
        lines = itertools.chain.from_iterable(self.reader)
        for chunk in batched_by_size(lines, len, CHUNK_CHARACTERS):
            yield normalize("\n".join(chunk) + "\n", self.config.normalization)


def cut(lines: Iterable[str], documents: str, separator: str = "") -> Iterator[str]:
    """Cut the lines of a file into documents, some of which may be empty.

    Args:
        lines: Lines without their line ends.
        documents: Unit of a document: "line", "separator", "blank_line" or "file".
        separator: Text between two documents, for "separator".
    """
    block: list[str] = []
    if documents == "line":
        yield from lines
    elif documents == "separator":
        # The document so far: `block`, then `rest`, in which the next separator may have begun.
        rest = ""
        for line in lines:
            *complete, rest = f"{rest}{line}\n".split(separator)
            for end in complete:
                yield "".join([*block, end])
                block = []
            border = max(0, len(rest) - len(separator) + 1)
            block.append(rest[:border])
            rest = rest[border:]
        yield "".join([*block, rest])
    else:
        for line in lines:
            if documents == "blank_line" and not line.strip():
                yield "\n".join(block)
                block = []
            else:
                block.append(line)
        yield "\n".join(block)


def digest_of(text: str) -> int:
    """Return the first 64 bits of the text's SHA-256.

    Among 100 million documents, two share them by chance in one corpus of about 4,000.
    """
    # surrogatepass: a lone surrogate has no valid UTF-8
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])


def split_of(digest: int, val_fraction: float) -> Split:
    """Return "val" if the digest, scaled to [0, 1), is below `val_fraction`, else "train"."""
    return "val" if digest / 2**64 < val_fraction else "train"
