from dataclasses import asdict
from itertools import chain, starmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.corpus.corpus import Document
from minigpt.corpus.encode import encode_corpus
from minigpt.data.token_files import Tokens, token_dtype, write_meta
from minigpt.tokenizer import BOS, EOS, UNK, CharTokenizer


def write(folder, tokenizer, documents) -> Tokens:
    """Write token files of `documents` and return them."""
    encode_corpus(documents, tokenizer, folder, folder / "documents.parquet")
    return Tokens(folder, tokenizer)


@pytest.fixture
def tokenizer() -> CharTokenizer:
    return CharTokenizer("abché")


@pytest.fixture
def tokens(tmp_path, tokenizer) -> Tokens:
    documents = [Document("abc", "train"), Document("hé", "train"), Document("?c", "train")]
    return write(tmp_path, tokenizer, documents)


def test_token_files_describe_their_contents(tokens):
    assert tokens.ids["train"].tolist() == [BOS, 4, 5, 6, EOS, BOS, 7, 8, EOS, BOS, UNK, 6, EOS]
    assert asdict(tokens.info["train"]) | {"sha256": ""} == {
        "documents": 3,
        "tokens": 13,
        "characters": 7,
        "bytes": 8,
        "unknown": 1,
        "sha256": "",
    }
    assert tokens.info["val"].documents == 0
    assert tokens.val_split == "train"  # fallback: the validation split is empty


@pytest.mark.parametrize(("size", "dtype"), [(256, "u1"), (257, "<u2"), (2**20, "<u4")])
def test_ids_use_the_smallest_sufficient_type(size, dtype):
    assert token_dtype(size) == np.dtype(dtype)


@given(st.lists(st.tuples(st.text(), st.sampled_from(["train", "val"])), max_size=20))
def test_documents_keep_their_order(tmp_path_factory, documents):
    tokenizer = CharTokenizer("abcde 0")
    tokens = write(tmp_path_factory.mktemp("tokens"), tokenizer, starmap(Document, documents))
    for split in ("train", "val"):
        texts = [text for text, where in documents if where == split]
        assert tokens.ids[split].tolist() == list(chain.from_iterable(map(tokenizer.encode, texts)))
        assert tokens.info[split].documents == len(texts)


def test_chunks_of_a_stream_form_one_document(tmp_path):
    tokenizer = CharTokenizer("abc")
    chunks = (("ab", True, False), ("c", False, False), ("a", False, True))
    documents = [Document(text, "train", begins, ends) for text, begins, ends in chunks]
    tokens = write(tmp_path, tokenizer, documents)
    assert tokens.ids["train"].tolist() == tokenizer.encode("abca")
    assert (tokens.info["train"].documents, tokens.info["train"].tokens) == (1, 6)


def test_tokens_of_another_vocabulary_are_refused(tmp_path, tokens):
    with pytest.raises(UserError, match="made with another vocabulary"):
        Tokens(tmp_path, CharTokenizer("xyz"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("train.bin", "has changed since it was written"), ("meta.json", "damaged, or of another")],
)
def test_every_flipped_byte_is_refused(tmp_path, tokens, name, message):
    file = tmp_path / name
    content = file.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{name}: {message}"):
            Tokens(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[]", '"text"', "null", "[" * 100_000, "\xff"])
def test_meta_without_the_expected_fields_is_refused(tmp_path, tokens, content):
    (tmp_path / "meta.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"meta\.json: damaged, or of another version; run"):
        Tokens(tmp_path)


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "meta.json"])
def test_a_missing_token_file_is_reported(tmp_path, tokens, name):
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name}: not found; run the stage prepare"):
        Tokens(tmp_path)


def test_ids_beyond_the_vocabulary_are_refused(tmp_path, tokens):
    counts = {split: asdict(info) for split, info in tokens.info.items()}
    for fields in counts.values():
        del fields["sha256"]
    write_meta(tmp_path, CharTokenizer("abc"), counts)
    with pytest.raises(UserError, match=r"train\.bin: contains ids beyond the vocabulary"):
        Tokens(tmp_path)
