"""The text of a sequence, token by token, with stop strings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.generation.sequence import Sequence
from minigpt.tokenizer import BPETokenizer, CharTokenizer


@given(
    st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3),
    st.text("ab ", max_size=30),
    st.integers(1, 30),
)
def test_text_ends_before_the_first_stop_string(stop, generated, max_new_tokens):
    """No text is returned that belongs to a stop string, and none is held back without need."""
    tokenizer = CharTokenizer("ab ")
    sequence = Sequence(tokenizer, "a", stop=stop, max_new_tokens=max_new_tokens)
    shown = ""
    ids = tokenizer.encode(generated, add_special_tokens=False)[:max_new_tokens]
    for count, token in enumerate(ids, start=1):
        shown += sequence.append(token, np.zeros(7))
        sofar = generated[:count]
        found = [sofar.index(string) for string in stop if string in sofar]
        if found:
            assert (sequence.finish_reason, shown) == ("stop", sofar[: min(found)])
            break
        overlaps = [n for string in stop for n in range(len(string)) if sofar.endswith(string[:n])]
        held = 0 if sequence.finish_reason else max(overlaps, default=0)
        assert shown == sofar[: count - held]
        assert sequence.finish_reason == ("length" if count == max_new_tokens else None)
    assert sequence.text == shown


@pytest.mark.parametrize(
    ("stop", "expected"), [("ox", "the f"), ("🦊", "the fox "), ("x 🦊 a", "the fo")]
)
def test_a_stop_string_may_begin_inside_a_subword(stop, expected):
    tokenizer = BPETokenizer(280)
    tokenizer.build_vocab(["the fox 🦊 and the fox 🦊"] * 3)
    sequence = Sequence(tokenizer, "", stop=[stop])
    for token in tokenizer.encode("the fox 🦊 and", add_special_tokens=False):
        if sequence.finish_reason is None:
            sequence.append(token, np.zeros(1))
    assert sequence.text == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max-new-tokens: must be 1 or more, but it is 0"),
        ({"stop": [".", ""]}, "stop: must not be empty"),
    ],
)
def test_an_invalid_option_is_named(options, message):
    with pytest.raises(UserError, match=message):
        Sequence(CharTokenizer("ab"), "a", **options)
