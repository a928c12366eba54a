from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.data.batches import Batches
from minigpt.tokenizer import BOS, PAD, CharTokenizer

ALPHABET = CharTokenizer("abcdefgh")
texts = st.lists(st.text("abcdefgh", min_size=1), min_size=1, max_size=12)


def ids_of(documents: list[str]) -> np.ndarray:
    return np.concatenate([ALPHABET.encode_array(document) for document in documents])


def test_targets_are_the_inputs_one_position_later(tokenizer):
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
        # which document comes next is no prediction
        expected = [(a, b) for a, b in pairwise(ids) if b != BOS]
        assert pairs == expected
        assert batches.num_targets == len(expected)


@given(texts, st.integers(1, 5), st.integers(1, 9), st.integers(0, 3))
def test_batches_are_reproducible_in_any_order(documents, batch_size, max_seq_len, seed):
    ids = ids_of(documents)
    for layout in ("packed", "padded"):
        first, second = (Batches(ids, layout, batch_size, max_seq_len, seed) for _ in range(2))
        for step in (7, 0, 3):
            for a, b in zip(first[step], second[step], strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.shape[0] == batch_size


def test_each_epoch_shuffles_all_documents():
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


def test_fewer_than_two_tokens_are_rejected():
    with pytest.raises(UserError, match="fewer than two tokens"):
        Batches(np.empty(0, np.uint8), "packed", 1, 4)
