"""Encode blocks of documents; writes the same bytes as `encode.py`."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from minigpt.corpus.corpus import SPLITS, Corpus
from minigpt.corpus.encode import Encoded
from minigpt.corpus.fast_path import (
    Block,
    Documents,
    block_reader,
    in_validation,
    kept_documents,
    lengths,
    map_blocks,
    read_blocks,
)
from minigpt.corpus.hash_set import HashArray
from minigpt.data.token_files import token_dtype
from minigpt.tokenizer import BOS, EOS, UNK, CharTokenizer, Tokenizer


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


def encode_blocks(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Encode the documents of `corpus` in batches, like `encode_batches(corpus, tokenizer)`."""
    encode = functools.partial(_encode_block, read=block_reader(corpus), tokenizer=tokenizer)
    seen = HashArray()
    corpus.documents_dropped = 0
    found = False
    for block in filter(None, map_blocks(encode, read_blocks(corpus), tokenizer)):
        found = True
        kept = kept_documents(block.digests, seen, corpus)
        if kept.any():
            yield _select(block, kept, in_validation(block.digests, corpus.val_fraction))
    if not found:
        next(iter(corpus))  # raises the error that there is no text


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
        tokens = lengths(parts) + 2
        gap = np.zeros(2, dtype)  # after each document; the last gap is half at the front
        spaced = [array.astype(dtype) for part in parts for array in (part, gap)]
        ids = np.roll(np.concatenate(spaced), 1)
    ends = np.cumsum(tokens)
    ids[ends - tokens] = BOS
    ids[ends - 1] = EOS
    return ids, tokens
