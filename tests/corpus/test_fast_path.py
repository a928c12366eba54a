"""The fast path gives the same bytes as the plain path."""

import gzip
import itertools
import sys
import tempfile
import unicodedata
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, data_config
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.common.parallel import batched_by_size
from minigpt.common.text import NORMALIZATION_FORMS
from minigpt.corpus import encode, fast_encode, fast_path
from minigpt.corpus.corpus import Corpus
from minigpt.corpus.encode import TableWriter, encode_batches, write_corpus
from minigpt.corpus.hash_set import HashArray
from minigpt.tokenizer import BPETokenizer, CharTokenizer
from minigpt.tokenizer.normalization import normalize

# few distinct pieces, so that documents repeat, and those that either path could misread
PIECES = [
    *(b"a", b"b", b"Ab", b" ", b"\t", b"\x1c", b"\x0c", b"\n", b"\n", b"\n\n", b"\n \n", b"\r"),
    *(b"\r\n", b"\r\n\r\n", b"\r\r\n", b"\n\r\n", b"\xff", b"\xe2\x82", b"\xef\xbb\xbf", b"\x00"),
    *(text.encode() for text in ("é", "e\u0301", "\u0301", "中", "😀", "ẖ", "İ", "Σ", "ﬁ", "¨")),
    *(text.encode() for text in ("\u00a0", "\u2003", "\u2028", "\x85", "\u200b", "\ufeff")),
    *(text.encode() for text in ("가", "\u1100", "\u1161")),
]
files = st.lists(
    st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join), min_size=1, max_size=3
)
ascii_files = st.lists(
    st.lists(st.sampled_from(PIECES[:19]), max_size=40).map(b"".join), min_size=1, max_size=3
)
options = st.fixed_dictionaries(
    {
        "documents": st.sampled_from(["auto", "line", "blank_line"]),
        "deduplicate": st.booleans(),
        "val_fraction": st.sampled_from(["auto", 0.0, 0.5, 0.999]),
        "invalid_utf8": st.sampled_from(["error", "replace"]),
        "normalization": st.sampled_from(NORMALIZATION_FORMS),
    }
)
BPE = BPETokenizer(270)
BPE.build_vocab(["ab ab aAb\n\nab é"])
tokenizers = st.one_of(
    st.just(BPE),
    st.builds(
        CharTokenizer,
        st.sampled_from(["ab", "a \n", "abA\né中e\u0301", map(chr, range(300))]).map(list),
        st.sampled_from(NORMALIZATION_FORMS),
        st.booleans(),
    ),
)
small_numbers = st.sampled_from([1, 7, 1 << 20])


def outcome(function, folder: Path) -> object:
    """Return what `function(folder)` wrote and returned, or the message of its error."""
    folder.mkdir()
    try:
        result = function(folder)
    except UserError as error:
        return str(error)
    return result, {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def plain(corpus: Corpus, tokenizer, folder: Path) -> object:
    batches = encode_batches(corpus, tokenizer)
    info = write_corpus(batches, tokenizer, folder, folder / "documents.parquet")
    return info, corpus.documents_dropped


def fast(corpus: Corpus, tokenizer, folder: Path) -> object:
    assert fast_path.applies(corpus)
    batches = fast_encode.encode_blocks(corpus, tokenizer)
    info = write_corpus(batches, tokenizer, folder, folder / "documents.parquet")
    return info, corpus.documents_dropped


def write_files(folder: Path, contents: list[bytes]) -> Path:
    (folder / "text").mkdir()
    for number, content in enumerate(contents):
        (folder / f"text/{number}.txt").write_bytes(content)
    return folder / "text"


def serial_map(function, items):
    return map(function, items)


@given(st.one_of(files, ascii_files), options, tokenizers, small_numbers, small_numbers)
def test_fast_path_writes_the_same_files(contents, values, tokenizer, block, group):
    with (
        tempfile.TemporaryDirectory() as name,
        patch.object(fast_path, "BLOCK_BYTES", block),
        patch.object(encode, "BATCH_CHARACTERS", group),
        patch.object(fast_path, "parallel_map", serial_map),
        patch.object(encode, "parallel_map", serial_map),
    ):
        folder = Path(name)
        config = data_config(write_files(folder, contents), **values)
        expected = outcome(lambda to: plain(Corpus(config), tokenizer, to), folder / "plain")
        found = outcome(lambda to: fast(Corpus(config), tokenizer, to), folder / "fast")
        assert found == expected


@given(st.one_of(files, ascii_files), options, st.sampled_from(NORMALIZATION_FORMS), st.booleans())
def test_fast_path_builds_the_same_vocabulary(contents, values, form, lowercase):
    def plain_counts(folder):
        tokenizer = CharTokenizer((), form, lowercase)
        corpus = Corpus(config)
        texts = (document.text for document in corpus if document.split == "train")
        counts = tokenizer.build_vocab(texts, 2)
        return counts, tokenizer.to_dict(), corpus.documents_dropped

    def fast_counts(folder):
        tokenizer = CharTokenizer((), form, lowercase)
        corpus = Corpus(config)
        counts = tokenizer.build_from_counts(fast_path.count_blocks(corpus, tokenizer), 2)
        return counts, tokenizer.to_dict(), corpus.documents_dropped

    with (
        tempfile.TemporaryDirectory() as name,
        patch.object(fast_path, "BLOCK_BYTES", 7),
        patch.object(fast_path, "parallel_map", serial_map),
    ):
        folder = Path(name)
        config = data_config(write_files(folder, contents), **values)
        assert outcome(fast_counts, folder / "fast") == outcome(plain_counts, folder / "plain")


def test_workers_write_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(fast_path, "SERIAL_BLOCKS", 1)
    text = (ROOT / "data/raw/tales.txt").read_text()
    file = tmp_path / "text.txt.gz"
    file.write_bytes(gzip.compress((text * 14 + text.replace("e", "é")).encode()))
    config = data_config(file)
    tokenizer = CharTokenizer(set(text) - {"x"}, "NFC")
    expected = outcome(lambda to: plain(Corpus(config), tokenizer, to), tmp_path / "plain")
    assert outcome(lambda to: fast(Corpus(config), tokenizer, to), tmp_path / "fast") == expected


def test_errors_are_those_of_the_text_read_first(tmp_path, monkeypatch):
    monkeypatch.setattr(fast_path, "SERIAL_BLOCKS", 1)
    file = tmp_path / "text.txt.gz"
    content = gzip.compress(b"a\n\n" * 300_000 + b"\xff\n\n" + b"b\n\n" * 1_500_000)
    file.write_bytes(content[:-20])
    corpus = Corpus(data_config(file))
    with pytest.raises(UserError, match="not UTF-8 text at byte 900000"):
        list(fast_encode.encode_blocks(corpus, CharTokenizer("ab")))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.csv", {}),
        ("a.txt", {"format": "jsonl"}),
        ("a.txt", {"documents": "none"}),
        ("a.txt", {"documents": "file"}),
        ("a.txt", {"documents": "separator"}),
    ],
)
def test_other_corpora_take_the_plain_path(tmp_path, name, values):
    (tmp_path / name).write_text("text")
    assert not fast_path.applies(Corpus(data_config(tmp_path / name, **values)))


@pytest.mark.parametrize("form", NORMALIZATION_FORMS)
def test_normalization_leaves_line_feeds_alone(form):
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        normalized = normalize(character, form)
        assert normalized.isspace() == character.isspace()
        assert ("\n" in normalized) == (character == "\n")
        assert normalize(f"\n{character}\n", form) == f"\n{normalized}\n"
    assert unicodedata.combining("\n") == 0


@given(st.lists(st.lists(st.integers(1, 9), min_size=1)), st.integers(1, 20))
def test_row_groups_do_not_depend_on_batches(batches, limit):
    with tempfile.TemporaryDirectory() as folder, patch.object(encode, "BATCH_CHARACTERS", limit):
        file = Path(folder) / "documents.parquet"
        with TableWriter(file) as writer:
            for lengths in batches:
                columns = dict.fromkeys(encode.TABLE.names, np.array(lengths))
                splits = np.array(["train"] * len(lengths))
                writer.add(columns | {"split": splits, "begins": np.array(lengths) > 0})
        table = pq.ParquetFile(file)
        groups = [
            table.read_row_group(i)["characters"].to_pylist() for i in range(table.num_row_groups)
        ]
        expected = batched_by_size(itertools.chain.from_iterable(batches), int, limit)
        assert groups == list(expected)


@given(st.lists(st.lists(st.integers(0, 20))), st.integers(1, 10))
def test_hash_array_is_a_set(batches, max_recent):
    hashes, seen = HashArray(max_recent), set()
    for batch in batches:
        new = hashes.add_all(np.array(batch, dtype=np.uint64))
        assert new.tolist() == [
            value not in seen and value not in batch[:i] for i, value in enumerate(batch)
        ]
        seen.update(batch)
