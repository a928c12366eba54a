"""Read text, drop duplicates and count characters on blocks of bytes, with the results of `Corpus`.

`Corpus` takes documents one at a time. Here a block of many documents stays one string, in which
blank lines separate documents. Cutting and normalization then take a few calls for each block,
and only the hash is computed for each document. Worker processes do this; the main process
drops duplicates, by arrays of hashes. `fast_encode.py` encodes the blocks.
"""

import functools
import hashlib
import itertools
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from minigpt.common.errors import UserError
from minigpt.common.parallel import batched_by_size, parallel_map
from minigpt.common.text import Normalization
from minigpt.corpus.corpus import Corpus
from minigpt.corpus.hash_set import HashArray
from minigpt.corpus.readers import damaged_file_errors, decode
from minigpt.tokenizer import CharTokenizer, Tokenizer
from minigpt.tokenizer.char_table import count_characters
from minigpt.tokenizer.normalization import normalize

BLOCK_BYTES = 1 << 20  # of text that one process takes at a time
SERIAL_BLOCKS = 64  # of one table look-up per character: as fast as the start of processes

# By `data.documents`: ends of a document, as bytes of a file. Another end of a document, such as a
# line of spaces, only makes a block longer.
ENDS = {"line": (b"\n",), "blank_line": (b"\n\n", b"\n\r\n")}

# blank lines other than a single empty one; \s is the white space of `str.strip`
IRREGULAR = re.compile(r"\n(?:\n\n|[^\S\n]+\n)")
BLANK_LINES = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Segment:
    """Whole documents of a file, as bytes from `offset` on."""

    file: Path
    offset: int
    data: bytes


Result = TypeVar("Result")

# An error of reading is an item too: workers report errors in the order of the text.
Block = list[Segment | UserError]


@dataclass(frozen=True)
class Documents:
    """Documents of a block, at least one.

    Attributes:
        text: Documents, joined by blank lines. No document contains or touches another blank line.
        digests: `digest_of` each document, (N,).
        characters: Length of each document, (N,).
        bytes: Size of each document in UTF-8, (N,).
    """

    text: str
    digests: np.ndarray
    characters: np.ndarray
    bytes: np.ndarray


def applies(corpus: Corpus) -> bool:
    """Return whether this module reads such a corpus: text files, cut at lines or blank lines."""
    formats = {corpus.reader.format_of(file) for file in corpus.reader.files}
    return corpus.documents in ENDS and formats == {"text"}


def count_blocks(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[Counter[str]]:
    """Count the characters of the training split, which `tokenizer` normalizes, in each block."""
    read = block_reader(corpus)
    count = functools.partial(
        _count_block, read=read, val_fraction=corpus.val_fraction, tokenizer=tokenizer
    )
    seen = HashArray()
    corpus.documents_dropped = 0
    in_flight: deque[Block] = deque()

    def remembered_blocks() -> Iterator[Block]:
        for block in read_blocks(corpus):
            in_flight.append(block)
            yield block

    found = False
    for result in map_blocks(count, remembered_blocks(), tokenizer):
        block = in_flight.popleft()
        if result is None:
            continue
        found = True
        digests, counts = result
        # A worker knows only its block, so the duplicates are subtracted here.
        dropped = ~kept_documents(digests, seen, corpus) & ~in_validation(
            digests, corpus.val_fraction
        )
        if dropped.any() and (documents := read(block)):
            counts -= _count_documents(documents, dropped, tokenizer)
        yield counts
    if not found:
        next(iter(corpus))  # raises the error that there is no text


def kept_documents(digests: np.ndarray, seen: HashArray, corpus: Corpus) -> np.ndarray:
    """Return which of the next documents are kept, (N,), and count the others in `corpus`."""
    if not corpus.config.deduplicate:
        return np.ones(len(digests), dtype=bool)
    new = seen.add_all(digests)
    corpus.documents_dropped += int((~new).sum())
    return new


def in_validation(digests: np.ndarray, val_fraction: float) -> np.ndarray:
    """Return for each digest whether `split_of` assigns it to the validation split, (N,)."""
    return np.asarray(digests.astype(np.float64) / 2**64 < val_fraction)


def map_blocks(
    function: Callable[[Block], Result], blocks: Iterator[Block], tokenizer: Tokenizer
) -> Iterator[Result]:
    if isinstance(tokenizer, CharTokenizer):
        yield from map(function, itertools.islice(blocks, SERIAL_BLOCKS))
    yield from parallel_map(function, blocks)


def read_blocks(corpus: Corpus) -> Iterator[Block]:
    return batched_by_size(
        _segments(corpus),
        lambda segment: len(segment.data) if isinstance(segment, Segment) else 0,
        BLOCK_BYTES,
    )


def _segments(corpus: Corpus) -> Iterator[Segment | UserError]:
    """Yield the files in segments; an error that ends reading is the last item."""
    try:
        for file, stream in corpus.reader.streams():
            with damaged_file_errors(file):
                yield from _cut_stream(stream, file, ENDS[corpus.documents])
    except UserError as error:
        yield error


def _cut_stream(stream: IO[bytes], file: Path, ends: tuple[bytes, ...]) -> Iterator[Segment]:
    offset = 0
    pending: list[bytes] = []
    while chunk := stream.read(BLOCK_BYTES):
        chunk += stream.readline()
        borders = (chunk.rfind(end) + len(end) for end in ends if end in chunk)
        border = next(borders, 0)
        pending.append(chunk[:border])
        if border:
            data = b"".join(pending)
            yield Segment(file, offset, data)
            offset += len(data)
            pending = []
        pending.append(chunk[border:])
    yield Segment(file, offset, b"".join(pending))


def block_reader(corpus: Corpus) -> Callable[[Block], Documents | None]:
    return functools.partial(
        read_documents,
        unit=corpus.documents,
        normalization=corpus.config.normalization,
        codec_errors=corpus.reader.codec_errors,
    )


def read_documents(
    block: Block, unit: str, normalization: Normalization, codec_errors: str
) -> Documents | None:
    """Return the normalized documents of a block; None if all are blank.

    Raises:
        UserError: Reading failed, or the text is not UTF-8.
    """
    text = "\n\n".join(_decode(segment, codec_errors) for segment in block)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if unit == "line":
        text = text.replace("\n", "\n\n")
    # A line feed neither combines with its neighbors nor results from other characters, and white
    # space stays white space, so documents can be normalized together and before they are cut.
    text = normalize(text, normalization).strip("\n")
    if text[:1].isspace() or text[-1:].isspace() or IRREGULAR.search(text):
        text = BLANK_LINES.sub("\n\n", f"\n{text}\n").strip("\n")
    if not text:
        return None
    data = text.encode()
    parts = data.split(b"\n\n")
    digests = b"".join([hashlib.sha256(part).digest()[:8] for part in parts])
    sizes = lengths(parts)
    return Documents(
        text,
        np.frombuffer(digests, ">u8").astype(np.uint64),
        sizes if text.isascii() else lengths(text.split("\n\n")),
        sizes,
    )


def _decode(segment: Segment | UserError, codec_errors: str) -> str:
    if isinstance(segment, UserError):
        raise segment
    text = decode(segment.data, codec_errors, f"{segment.file}:", segment.offset)
    return text if segment.offset else text.removeprefix("\ufeff")


def lengths(parts: Sequence[Sized]) -> np.ndarray:
    return np.fromiter(map(len, parts), np.int64, len(parts))


def _count_block(
    block: Block,
    read: Callable[[Block], Documents | None],
    val_fraction: float,
    tokenizer: Tokenizer,
) -> tuple[np.ndarray, Counter[str]] | None:
    """Return the digests of all documents, and the counts of those in the training split."""
    documents = read(block)
    if documents is None:
        return None
    is_train = ~in_validation(documents.digests, val_fraction)
    return documents.digests, _count_documents(documents, is_train, tokenizer)


def _count_documents(
    documents: Documents, chosen: np.ndarray, tokenizer: Tokenizer
) -> Counter[str]:
    """Count the characters of the chosen documents, normalized by `tokenizer`."""
    texts = list(itertools.compress(documents.text.split("\n\n"), chosen.tolist()))
    counts = Counter(count_characters(tokenizer.normalize("\n".join(texts))))
    counts["\n"] -= max(0, len(texts) - 1)
    return +counts  # without zeros
