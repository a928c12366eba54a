"""Read, deduplicate, count and encode text on blocks of bytes, byte-identical to the plain path.

`Corpus` takes documents one at a time. Here a block of many documents stays one string, in which
blank lines separate documents. Cutting, normalization and encoding then take a few calls for each
block, and only the hash is computed for each document. Worker processes do this; the main process
drops duplicates, by arrays of hashes.
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
from minigpt.corpus.corpus import SPLITS, Corpus
from minigpt.corpus.encode import Encoded
from minigpt.corpus.hash_set import HashArray
from minigpt.corpus.readers import damaged_file_errors, decode
from minigpt.data.token_files import token_dtype
from minigpt.tokenizer import BOS, EOS, UNK, CharTokenizer, Tokenizer
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


@dataclass(frozen=True)
class EncodedBlock:
    """Documents of a block and their ids.

    Attributes:
        digests, characters, bytes: Those of `Documents`.
        tokens: Number of ids of each document, including <bos> and <eos>, (N,).
        unknown: Number of <unk> of each document, (N,).
        ids: Ids of all documents, (T,).
    """

    digests: np.ndarray
    characters: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray
    unknown: np.ndarray
    ids: np.ndarray


def applies(corpus: Corpus) -> bool:
    """Return whether this module reads such a corpus: text files, cut at lines or blank lines."""
    formats = {corpus.reader.format_of(file) for file in corpus.reader.files}
    return corpus.documents in ENDS and formats == {"text"}


def encode_blocks(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Encode the documents of `corpus` in batches, like `encode_batches(corpus, tokenizer)`."""
    encode = functools.partial(_encode_block, read=_block_reader(corpus), tokenizer=tokenizer)
    seen = HashArray()
    corpus.documents_dropped = 0
    found = False
    for block in filter(None, _map_blocks(encode, _blocks(corpus), tokenizer)):
        found = True
        kept = _kept(block.digests, seen, corpus)
        if kept.any():
            yield _select(block, kept, in_validation(block.digests, corpus.val_fraction))
    if not found:
        next(iter(corpus))  # raises the error that there is no text


def count_blocks(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[Counter[str]]:
    """Count the characters of the training split, which `tokenizer` normalizes, in each block."""
    read = _block_reader(corpus)
    count = functools.partial(
        _count_block, read=read, val_fraction=corpus.val_fraction, tokenizer=tokenizer
    )
    seen = HashArray()
    corpus.documents_dropped = 0
    in_flight: deque[Block] = deque()

    def remembered_blocks() -> Iterator[Block]:
        for block in _blocks(corpus):
            in_flight.append(block)
            yield block

    found = False
    for result in _map_blocks(count, remembered_blocks(), tokenizer):
        block = in_flight.popleft()
        if result is None:
            continue
        found = True
        digests, counts = result
        # A worker knows only its block, so the duplicates are subtracted here.
        dropped = ~_kept(digests, seen, corpus) & ~in_validation(digests, corpus.val_fraction)
        if dropped.any() and (documents := read(block)):
            counts -= _count_documents(documents, dropped, tokenizer)
        yield counts
    if not found:
        next(iter(corpus))  # raises the error that there is no text


def _kept(digests: np.ndarray, seen: HashArray, corpus: Corpus) -> np.ndarray:
    """Return which of the next documents are kept, (N,), and count the others in `corpus`."""
    if not corpus.config.deduplicate:
        return np.ones(len(digests), dtype=bool)
    new = seen.add_all(digests)
    corpus.documents_dropped += int((~new).sum())
    return new


def in_validation(digests: np.ndarray, val_fraction: float) -> np.ndarray:
    """Return for each digest whether `split_of` assigns it to the validation split, (N,)."""
    return np.asarray(digests.astype(np.float64) / 2**64 < val_fraction)


def _select(block: EncodedBlock, kept: np.ndarray, is_val: np.ndarray) -> Encoded:
    """Return the ids and rows of the documents in `kept`."""
    data = {split: _ids_of(block, kept & (is_val == (split == "val"))) for split in SPLITS}
    splits = np.array(SPLITS)[is_val[kept].astype(int)]
    columns = {
        "split": splits,
        "begins": np.ones(len(splits), dtype=bool),
        "characters": block.characters[kept],
        "bytes": block.bytes[kept],
        "tokens": block.tokens[kept],
        "unknown": block.unknown[kept],
    }
    return data, columns


def _ids_of(block: EncodedBlock, chosen: np.ndarray) -> bytes:
    """Return the ids of the chosen documents, copied in runs of consecutive documents."""
    borders = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
    starts = np.concatenate(([0], np.cumsum(block.tokens)))[borders].reshape(-1, 2)
    return b"".join(block.ids[start:stop].data for start, stop in starts.tolist())


def _map_blocks(
    function: Callable[[Block], Result], blocks: Iterator[Block], tokenizer: Tokenizer
) -> Iterator[Result]:
    if isinstance(tokenizer, CharTokenizer):
        yield from map(function, itertools.islice(blocks, SERIAL_BLOCKS))
    yield from parallel_map(function, blocks)


def _blocks(corpus: Corpus) -> Iterator[Block]:
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
        border = max(chunk.rfind(end) + len(end) if end in chunk else 0 for end in ends)
        pending.append(chunk[:border])
        if border:
            data = b"".join(pending)
            yield Segment(file, offset, data)
            offset += len(data)
            pending = []
        pending.append(chunk[border:])
    yield Segment(file, offset, b"".join(pending))


def _block_reader(corpus: Corpus) -> Callable[[Block], Documents | None]:
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
    text = "\n" + normalize(text, normalization) + "\n"
    if IRREGULAR.search(text):
        text = BLANK_LINES.sub("\n\n", text)
    text = text.strip("\n")
    if not text:
        return None
    data = text.encode()
    parts = data.split(b"\n\n")
    digests = b"".join([hashlib.sha256(part).digest()[:8] for part in parts])
    sizes = _lengths(parts)
    return Documents(
        text,
        np.frombuffer(digests, ">u8").astype(np.uint64),
        sizes if text.isascii() else _lengths(text.split("\n\n")),
        sizes,
    )


def _decode(segment: Segment | UserError, codec_errors: str) -> str:
    if isinstance(segment, UserError):
        raise segment
    text = decode(segment.data, codec_errors, f"{segment.file}:", segment.offset)
    return text if segment.offset else text.removeprefix("\ufeff")


def _lengths(parts: Sequence[Sized]) -> np.ndarray:
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


def _encode_block(
    block: Block, read: Callable[[Block], Documents | None], tokenizer: Tokenizer
) -> EncodedBlock | None:
    documents = read(block)
    if documents is None:
        return None
    ids, tokens = _encode(documents, tokenizer)
    ends = np.cumsum(tokens)
    is_unknown = ids == UNK
    unknown = np.zeros(len(tokens), dtype=np.int64)
    if is_unknown.any():
        unknown = np.add.reduceat(is_unknown, ends - tokens, dtype=np.int64)
    return EncodedBlock(
        documents.digests, documents.characters, documents.bytes, tokens, unknown, ids
    )


def _encode(documents: Documents, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of all documents (T,), and their number for each document (N,)."""
    dtype, text = token_dtype(tokenizer.vocab_size), documents.text
    one_each = isinstance(tokenizer, CharTokenizer) and (
        text.isascii() or tokenizer.normalize(text) == text
    )
    if one_each:  # id of each character; <eos> and <bos> take the place of two line feeds
        tokens = documents.characters + 2
        ids = np.empty(len(text) + 2, dtype)
        ids[1:-1] = tokenizer.encode_batch([text])[0]
    else:
        parts = tokenizer.encode_batch(text.split("\n\n"))
        tokens = _lengths(parts) + 2
        gap = np.zeros(2, dtype)  # after each document; the last gap is half at the front
        spaced = [array.astype(dtype) for part in parts for array in (part, gap)]
        ids = np.roll(np.concatenate(spaced), 1)
    ends = np.cumsum(tokens)
    ids[ends - tokens] = BOS
    ids[ends - 1] = EOS
    return ids, tokens
