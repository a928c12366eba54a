"""The cache of words gives the ids of the library."""

import sys
from unittest.mock import patch

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.text import NORMALIZATION_FORMS
from minigpt.tokenizer import BPETokenizer, word_cache
from minigpt.tokenizer.normalization import normalize
from minigpt.tokenizer.word_cache import OTHER_SPACE, WORD

TALES = (ROOT / "data/raw/tales.txt").read_text()
# so frequent that pairs across different white space are merged
SPACES = (
    "".join(f"{space}  a{space}\n\na " for space in "\x1c\x85\xa0\u2003\u200b\u3000\u180e") * 99
)
TRAINING = f"{TALES[:20_000]} \n\n  ' ''s 12 1½² e\u0301é ¨{SPACES}"
TOKENIZERS = {}
for form in NORMALIZATION_FORMS:
    for lowercase in (False, True):
        TOKENIZERS[form, lowercase] = BPETokenizer(400, form, lowercase)
        TOKENIZERS[form, lowercase].build_vocab([TRAINING])

PIECES = [
    *("a", "the", "It", "'s", "'ll", "'", "1", "½", "²", "_", ".", "!?", "é", "e\u0301", "\u0301"),
    *(" ", " ", "  ", "\n", "\t", "\r", "\x0b", "\x1c", "\x85", "\xa0", "\u2003", "\u200b"),
    *(
        "\u3000",
        "\u180e",
        "\u2060",
        "\ufeff",
        "中",
        "😀",
        "가",
        "\u1161",
        "İ",
        "Σ",
        "ﬁ",
        "¨",
        "\ud83d",
    ),
    *("\u00a8", "\u037a", "\u0385", "\u1fbd", "\u203e", "\uffe3", "\ufe49", "\ufc5e", "x" * 40),
]
texts = st.lists(
    st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=12)),
    max_size=6,
)


@given(st.sampled_from(sorted(TOKENIZERS)), texts, st.sampled_from([0, 3, 1 << 17]))
def test_cache_gives_the_ids_of_the_library(key, texts, max_words):
    tokenizer = TOKENIZERS[key]
    with patch.object(word_cache, "MAX_WORDS", max_words):
        for _ in range(2):
            found = tokenizer.encode_batch(texts)
            assert [ids.tolist() for ids in found] == [
                ids.tolist() for ids in tokenizer.encode_uncached(texts)
            ]
            assert all(ids.dtype == np.int64 for ids in found)


@pytest.mark.parametrize("form", NORMALIZATION_FORMS)
def test_no_other_character_ends_in_white_space(form):
    for point in range(sys.maxunicode + 1):
        text = normalize(chr(point), form)
        if text[-1].isspace():
            assert OTHER_SPACE.fullmatch(chr(point)) or WORD.fullmatch(chr(point)).end()
            assert chr(point).isspace()
        if chr(point).isspace() and chr(point) not in "\t\n\v\f\r ":
            assert OTHER_SPACE.fullmatch(chr(point))


def test_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(word_cache, "MAX_WORDS", 50)
    tokenizer = BPETokenizer(260)
    for start in range(0, 5_000, 500):
        tokenizer.encode_batch([TALES[start : start + 500] + " " + "x" * 33])
        assert len(tokenizer._cache._ids) <= 50
        assert all(len(word) <= 32 for word in tokenizer._cache._ids)
