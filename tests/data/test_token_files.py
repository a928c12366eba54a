import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.common.parallel import batched_by_size
from minigpt.corpus.corpus import Document
from minigpt.corpus.encode import encode_documents
from minigpt.data.token_files import Tokens, TokenWriter, token_dtype, write_meta
from minigpt.tokenizer import BOS, EOS, UNK, CharTokenizer


def write(folder) -> CharTokenizer:
    tokenizer = CharTokenizer("abché")
    documents = [Document("abc", "train"), Document("hé", "train"), Document("?c", "train")]
    with TokenWriter(folder, "train", 9) as train, TokenWriter(folder, "val", 9) as val:
        batch = encode_documents(documents, tokenizer)
        train.add(batch.data[train.split], batch.counts(train.split))
        val.add(batch.data[val.split], batch.counts(val.split))
        write_meta(folder, tokenizer, {"train": train.finish(), "val": val.finish()})
    return tokenizer


def test_token_files_describe_their_contents(tmp_path):
    tokenizer = write(tmp_path)
    tokens = Tokens(tmp_path, tokenizer)
    assert tokens.ids["train"].tolist() == [BOS, 4, 5, 6, EOS, BOS, 7, 8, EOS, BOS, UNK, 6, EOS]
    info = tokens.info["train"]
    assert (info.documents, info.tokens, info.characters, info.bytes, info.unknown) == (
        3,
        13,
        7,
        8,
        1,
    )
    assert tokens.info["val"].documents == 0
    assert tokens.val_split == "train"  # nothing was held out
    assert tokens.ids["train"].dtype == token_dtype(tokenizer.vocab_size) == np.uint8
    assert token_dtype(257) == np.dtype("<u2")


@given(
    st.lists(st.tuples(st.text(), st.sampled_from(["train", "val"])), max_size=20),
    st.integers(1, 30),
)
def test_token_files_do_not_depend_on_the_batching(tmp_path_factory, documents, limit):
    folder = tmp_path_factory.mktemp("tokens")
    tokenizer = CharTokenizer("abcde 0")
    batches = batched_by_size(
        (Document(*document) for document in documents), lambda d: len(d.text) + 1, limit
    )
    with TokenWriter(folder, "train", 11) as train, TokenWriter(folder, "val", 11) as val:
        for batch in batches:
            encoded = encode_documents(batch, tokenizer)
            train.add(encoded.data["train"], encoded.counts("train"))
            val.add(encoded.data["val"], encoded.counts("val"))
        write_meta(folder, tokenizer, {"train": train.finish(), "val": val.finish()})
    tokens = Tokens(folder, tokenizer)
    for split in ("train", "val"):
        expected = [
            token for text, where in documents if where == split for token in tokenizer.encode(text)
        ]
        assert tokens.ids[split].tolist() == expected
        assert tokens.info[split].documents == sum(where == split for _, where in documents)


def test_stream_is_one_document(tmp_path):
    tokenizer = CharTokenizer("abc")
    with TokenWriter(tmp_path, "train", 7) as writer:
        for text, begins in (("ab", True), ("c", False), ("a", False)):
            encoded = encode_documents([Document(text, "train", begins, ends=False)], tokenizer)
            writer.add(encoded.data["train"], encoded.counts("train"))
        info = writer.finish()
    assert np.fromfile(tmp_path / "train.bin", np.uint8).tolist() == tokenizer.encode("abca")
    assert (info.documents, info.tokens) == (1, 6)


def test_token_files_are_verified_on_opening(tmp_path):
    tokenizer = write(tmp_path)
    with pytest.raises(UserError, match="made with another vocabulary"):
        Tokens(tmp_path, CharTokenizer("xyz"))
    (tmp_path / "train.bin").write_bytes(b"123")
    with pytest.raises(UserError, match=r"train\.bin: missing, or not 13 tokens"):
        Tokens(tmp_path, tokenizer)
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(UserError, match=r"meta\.json: damaged"):
        Tokens(tmp_path, tokenizer)
