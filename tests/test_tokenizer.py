import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.errors import UserError
from minigpt.tokenizer import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, CharTokenizer

any_text = st.text(st.characters(codec=None))  # lone surrogates too


def test_golden_ids(tokenizer):
    assert tokenizer.vocab_size == 40
    assert tokenizer.encode("hello") == [2, 21, 18, 25, 25, 28, 3]
    assert tokenizer.encode("The quick brown", add_special_tokens=False) == [
        *[13, 21, 18, 4, 30, 34, 22, 16, 24, 4, 15, 31, 28, 36, 27]
    ]
    assert tokenizer.decode([21, 18, 25, 25, 28]) == "hello"
    assert [SPECIAL_TOKENS[i] for i in (PAD, UNK, BOS, EOS)] == ["<pad>", "<unk>", "<bos>", "<eos>"]


@given(any_text)
def test_round_trip_of_any_text(text):
    tokenizer = CharTokenizer()
    tokenizer.build_vocab([text])
    ids = tokenizer.encode(text)
    assert (ids[0], ids[-1]) == (BOS, EOS)
    assert UNK not in ids
    assert tokenizer.decode(ids) == text


@given(any_text, any_text)
def test_characters_outside_the_vocabulary_become_unk(known, text):
    tokenizer = CharTokenizer(known)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert [token == UNK for token in ids] == [character not in known for character in text]
    assert tokenizer.decode(ids) == "".join(character for character in text if character in known)
    assert tokenizer.unknown(text) == sorted(set(text) - set(known))


def test_min_freq_leaves_rare_characters_out():
    tokenizer = CharTokenizer()
    assert tokenizer.build_vocab(["aab", "abc"], min_freq=2) == {"a": 3, "b": 2, "c": 1}
    assert tokenizer.characters == ["a", "b"]
    assert tokenizer.encode("abc") == [BOS, 4, 5, UNK, EOS]


def test_text_that_spells_a_special_token_is_only_text():
    tokenizer = CharTokenizer("<eos>")
    assert tokenizer.encode("<eos>", add_special_tokens=False) == [4, 6, 7, 8, 5]
    assert tokenizer.decode(tokenizer.encode("<eos>")) == "<eos>"


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    for wrong in (-1, 40):
        with pytest.raises(ValueError, match="outside the vocabulary of 40"):
            tokenizer.decode([wrong])


@given(st.text())
def test_save_and_load(tmp_path_factory, characters):
    path = tmp_path_factory.mktemp("vocab") / "vocab.json"
    tokenizer = CharTokenizer(characters)
    tokenizer.save(path)
    loaded = CharTokenizer.load(path)
    assert loaded.characters == tokenizer.characters
    assert loaded.sha256() == tokenizer.sha256()


def test_the_fingerprint_tells_vocabularies_apart():
    assert CharTokenizer("ab").sha256() != CharTokenizer("abc").sha256()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"type": "char", "special_tokens": [], "characters": []}',
        json.dumps({"type": "char", "special_tokens": SPECIAL_TOKENS, "characters": ["b", "a"]}),
        json.dumps({"type": "char", "special_tokens": SPECIAL_TOKENS, "characters": ["ab"]}),
        json.dumps({"type": "char", "special_tokens": SPECIAL_TOKENS, "characters": [1]}),
    ],
)
def test_a_damaged_vocabulary_is_refused_by_name(tmp_path, content):
    path = tmp_path / "vocab.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"vocab\.json: not a vocabulary"):
        CharTokenizer.load(path)
