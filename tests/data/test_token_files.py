import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.common.parallel import batched_by_size, parallel_map
from minigpt.corpus.corpus import Document
from minigpt.corpus.encode import encode_documents
from minigpt.data.batches import Batches
from minigpt.data.token_files import Tokens, TokenWriter, token_dtype, write_meta
from minigpt.tokenizer import BOS, EOS, PAD, UNK, CharTokenizer

ALPHABET = CharTokenizer("abcdefgh")
texts = st.lists(st.text("abcdefgh", min_size=1), min_size=1, max_size=12)


def ids_of(documents: list[str]) -> np.ndarray:
    return np.concatenate([ALPHABET.encode_array(document) for document in documents])


def test_targets_are_the_inputs_one_later(tokenizer):
    ids = tokenizer.encode_array("hello")
    for layout in ("packed", "padded"):
        input_ids, targets = next(iter(Batches(ids, layout, batch_size=1, max_seq_len=64)))
        assert input_ids.tolist() == [[2, 21, 18, 25, 25, 28]]
        assert targets.tolist() == [[21, 18, 25, 25, 28, 3]]


@given(texts, st.integers(1, 5), st.integers(1, 9))
def test_one_pass_predicts_every_token_once(documents, batch_size, max_seq_len):
    ids = ids_of(documents)
    for layout in ("packed", "padded"):
        batches = Batches(ids, layout, batch_size, max_seq_len)
        pairs = []
        for input_ids, targets in batches:
            assert input_ids.shape == targets.shape
            assert input_ids.shape[0] <= batch_size
            assert input_ids.shape[1] <= max_seq_len
            pairs += [
                (a, b) for a, b in zip(input_ids.ravel(), targets.ravel(), strict=True) if b != PAD
            ]
        expected = list(pairwise(ids))
        if layout == "padded":  # the step from one document to the next is nobody's task
            expected = [(a, b) for a, b in expected if a != EOS]
        assert pairs == expected
        assert batches.num_targets == len(expected)


@given(texts, st.integers(1, 5), st.integers(1, 9), st.integers(0, 3))
def test_batches_are_a_function_of_seed_and_step(documents, batch_size, max_seq_len, seed):
    ids = ids_of(documents)
    for layout in ("packed", "padded"):
        first, second = (Batches(ids, layout, batch_size, max_seq_len, seed) for _ in range(2))
        for step in (7, 0, 3):  # in any order
            for a, b in zip(first[step], second[step], strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.shape[0] == batch_size


def test_an_epoch_visits_every_document_once_in_another_order_each_time():
    documents = ["a" * n for n in range(1, 9)]
    batches = Batches(ids_of(documents), "padded", batch_size=4, max_seq_len=16)
    epochs = []
    for epoch in range(3):
        rows = [targets for step in (2 * epoch, 2 * epoch + 1) for targets in batches[step][1]]
        epochs.append([int((row != PAD).sum()) for row in rows])
    assert all(sorted(epoch) == list(range(2, 10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_padded_rows_begin_with_bos():
    input_ids, _ = Batches(ids_of(["ab", "c", "def"]), "padded", batch_size=3, max_seq_len=8)[0]
    assert (input_ids[:, 0] == BOS).all()


def test_too_little_text_is_refused():
    with pytest.raises(UserError, match="fewer than two tokens"):
        Batches(np.empty(0, np.uint8), "packed", 1, 4)


def write(folder) -> CharTokenizer:
    tokenizer = CharTokenizer("abché")
    documents = [Document("abc", "train"), Document("hé", "train"), Document("?c", "train")]
    with TokenWriter(folder, "train", 9) as train, TokenWriter(folder, "val", 9) as val:
        batch = encode_documents(documents, tokenizer)
        train.add(batch.data[train.split], batch.counts(train.split))
        val.add(batch.data[val.split], batch.counts(val.split))
        write_meta(folder, tokenizer, {"train": train.finish(), "val": val.finish()})
    return tokenizer


def test_token_files_say_what_they_hold(tmp_path):
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
def test_however_it_is_batched_the_files_are_what_encode_gives(tmp_path_factory, documents, limit):
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


def test_a_stream_is_one_document_of_many_pieces(tmp_path):
    tokenizer = CharTokenizer("abc")
    with TokenWriter(tmp_path, "train", 7) as writer:
        for text, begins in (("ab", True), ("c", False), ("a", False)):
            encoded = encode_documents([Document(text, "train", begins, ends=False)], tokenizer)
            writer.add(encoded.data["train"], encoded.counts("train"))
        info = writer.finish()
    assert np.fromfile(tmp_path / "train.bin", np.uint8).tolist() == tokenizer.encode("abca")
    assert (info.documents, info.tokens) == (1, 6)


def test_work_in_other_processes_comes_back_in_order():
    assert list(parallel_map(math.sqrt, (n * n for n in range(50)))) == list(range(50))
    assert list(parallel_map(math.sqrt, [4])) == [2]
    with pytest.raises(ValueError, match="math domain"):
        list(parallel_map(math.sqrt, [1, 1, 1, 1, 1, -1]))


def test_token_files_are_verified_when_opened(tmp_path):
    tokenizer = write(tmp_path)
    with pytest.raises(UserError, match="made with another vocabulary"):
        Tokens(tmp_path, CharTokenizer("xyz"))
    (tmp_path / "train.bin").write_bytes(b"123")
    with pytest.raises(UserError, match=r"train\.bin: missing, or not 13 tokens"):
        Tokens(tmp_path, tokenizer)
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(UserError, match=r"meta\.json: damaged"):
        Tokens(tmp_path, tokenizer)
