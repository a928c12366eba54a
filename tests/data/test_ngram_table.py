import base64
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.ngram_table import MAX_BYTES, NgramTable, read_ngram_table

V = 7
TABLE = NgramTable([(), (4,), (70_000,), (5, 4)], np.arange(4 * V, dtype=np.uint8).reshape(4, V))
TEXT = TABLE.to_text()


def stored(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def test_table_is_unchanged_by_a_text_round_trip():
    found = NgramTable.from_text(TEXT, V)
    assert found.contexts == TABLE.contexts
    np.testing.assert_array_equal(found.steps, TABLE.steps)


@pytest.mark.parametrize(
    ("ids", "row"), [([5, 4], 3), ([6, 4], 1), ([4, 5], 0), ([], 0), ([9, 9, 9, 9, 5, 4], 3)]
)
def test_lookup_finds_the_longest_context(ids, row):
    np.testing.assert_array_equal(TABLE.lookup(ids), TABLE.steps[row] / np.float32(-16))


@given(st.integers(0, len(TEXT) - 1), st.characters(codec="ascii"))
def test_a_changed_character_never_changes_the_table(position, character):
    changed = TEXT[:position] + character + TEXT[position + 1 :]
    try:
        found = NgramTable.from_text(changed, V)
    except ValueError:
        return  # detected; the last character of base64 has bits without meaning
    assert found.contexts == TABLE.contexts
    np.testing.assert_array_equal(found.steps, TABLE.steps)


@given(st.integers(0, len(TEXT) - 1))
def test_truncated_table_is_rejected(length):
    with pytest.raises(ValueError, match=r"."):
        NgramTable.from_text(TEXT[:length], V)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (stored(np.array([2, 0, 0, 0, 0, 0], "<u4").tobytes()), "version 2; expected 1"),
        (stored(b""), "buffer"),
        (stored(np.array([1, 9, 0, 0, 0, 0], "<u4").tobytes()), "buffer"),
        (stored(bytes(6 * MAX_BYTES)), "cut off or too large"),
        (stored(np.array([1, 0, 0, 0, 0, 0], "<u4").tobytes() + bytes(V + 1)), "does not fit"),
    ],
)
def test_malformed_table_is_rejected(text, message):
    with pytest.raises(ValueError, match=message):
        NgramTable.from_text(text, V)


def test_missing_table_is_read_as_none():
    assert read_ngram_table({}, V) is None
