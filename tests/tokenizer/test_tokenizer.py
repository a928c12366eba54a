import copy
import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.common.text import NORMALIZATION_FORMS
from minigpt.tokenizer import (
    BOS,
    EOS,
    PAD,
    SPECIAL_TOKENS,
    UNK,
    BPETokenizer,
    CharTokenizer,
    load_tokenizer,
    tokenizer_from_dict,
)
from minigpt.tokenizer.normalization import normalize

any_text = st.text(st.characters(codec=None))  # includes lone surrogates
TEXTS = [
    "naïve café 🦊, naïve café 🦊!",
    "<eos> <eos> <eos> the <pad> the <bos>",
    "12 112 1112\n\n  the end\r\n",
]


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    tokenizer = BPETokenizer(290)
    tokenizer.build_vocab(TEXTS)
    return tokenizer


def test_encoding_matches_the_golden_ids(tokenizer):
    assert tokenizer.vocab_size == 40
    assert tokenizer.encode("hello") == [2, 21, 18, 25, 25, 28, 3]
    assert tokenizer.encode("The quick brown", add_special_tokens=False) == [
        *[13, 21, 18, 4, 30, 34, 22, 16, 24, 4, 15, 31, 28, 36, 27]
    ]
    assert tokenizer.decode([21, 18, 25, 25, 28]) == "hello"
    assert [SPECIAL_TOKENS[i] for i in (PAD, UNK, BOS, EOS)] == ["<pad>", "<unk>", "<bos>", "<eos>"]


@given(any_text)
def test_char_tokenizer_round_trips_any_text(text):
    tokenizer = CharTokenizer()
    tokenizer.build_vocab([text])
    ids = tokenizer.encode(text)
    assert (ids[0], ids[-1]) == (BOS, EOS)
    assert UNK not in ids
    assert tokenizer.decode(ids) == text


@given(st.lists(any_text), any_text)
def test_char_batch_encoding_matches_single_encoding(texts, characters):
    tokenizer = CharTokenizer(characters)
    expected = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == expected


@given(any_text, any_text)
def test_characters_outside_the_vocabulary_become_unk(known, text):
    tokenizer = CharTokenizer(known)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert [token == UNK for token in ids] == [character not in known for character in text]
    assert tokenizer.decode(ids) == "".join(character for character in text if character in known)
    assert tokenizer.unknown(text) == sorted(set(text) - set(known))


def test_min_freq_drops_rare_characters():
    tokenizer = CharTokenizer()
    assert tokenizer.build_vocab(["aab", "abc"], min_freq=2) == {"a": 3, "b": 2, "c": 1}
    assert tokenizer.characters == ["a", "b"]
    assert tokenizer.encode("abc") == [BOS, 4, 5, UNK, EOS]


def test_char_tokenizer_encodes_special_token_names_as_text():
    tokenizer = CharTokenizer("<eos>")
    assert tokenizer.encode("<eos>", add_special_tokens=False) == [4, 6, 7, 8, 5]
    assert tokenizer.decode(tokenizer.encode("<eos>")) == "<eos>"


def test_ids_outside_the_vocabulary_are_rejected(tokenizer):
    for wrong in (-1, 40):
        with pytest.raises(ValueError, match="outside the vocabulary of 40"):
            tokenizer.decode([wrong])
    with pytest.raises(ValueError, match="outside the vocabulary of 260"):
        BPETokenizer().decode([260])


@given(any_text, st.sampled_from(NORMALIZATION_FORMS), st.booleans())
def test_loaded_char_vocabulary_equals_the_saved_one(tmp_path_factory, characters, form, lowercase):
    path = tmp_path_factory.mktemp("vocab") / "vocab.json"
    tokenizer = CharTokenizer(characters, form, lowercase)
    tokenizer.save(path)
    loaded = load_tokenizer(path)
    assert isinstance(loaded, CharTokenizer)
    assert loaded.describe() == tokenizer.describe()
    assert loaded.sha256() == tokenizer.sha256()


def test_fingerprint_distinguishes_vocabularies():
    found = [
        CharTokenizer("ab"),
        CharTokenizer("abc"),
        CharTokenizer("ab", "NFC"),
        CharTokenizer("ab", lowercase=True),
    ]
    found += [BPETokenizer(), BPETokenizer(normalization="NFC"), BPETokenizer(lowercase=True)]
    assert len({tokenizer.sha256() for tokenizer in found}) == len(found)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "null",
        "{",
        '{"model": {}}',
        "[]",
        "{}",
        '{"type": "char", "special_tokens": [], "characters": []}',
        json.dumps({"type": "char", "special_tokens": SPECIAL_TOKENS, "characters": ["b", "a"]}),
        json.dumps({"type": "char", "special_tokens": SPECIAL_TOKENS, "characters": ["ab"]}),
        json.dumps({"type": "char", "special_tokens": SPECIAL_TOKENS, "characters": [1]}),
        json.dumps({"type": "char", "special_tokens": SPECIAL_TOKENS, "characters": ["a"]}),
        json.dumps({**CharTokenizer("a").to_dict(), "normalization": "NFX"}),
        json.dumps({**CharTokenizer("a").to_dict(), "lowercase": 1}),
        json.dumps({**BPETokenizer().to_dict(), "normalizer": None}),
        json.dumps({**BPETokenizer().to_dict(), "pre_tokenizer": None}),
    ],
)
def test_damaged_vocabulary_is_rejected(tmp_path, content):
    path = tmp_path / "vocab.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"vocab\.json: not a vocabulary"):
        load_tokenizer(path)


@pytest.mark.parametrize("make", [CharTokenizer, BPETokenizer])
@pytest.mark.parametrize("form", NORMALIZATION_FORMS)
def test_prompts_are_normalized_like_training_text(make, form):
    composed, decomposed = "Caf\u00e9 \ufb01n", "Cafe\u0301 \ufb01n"
    tokenizer = make(normalization=form, lowercase=True)
    counts = tokenizer.build_vocab([composed, decomposed])
    assert set(counts) == set(normalize(composed + decomposed, form, lowercase=True))
    for again in (tokenizer, tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))):
        assert again.normalization == form
        assert again.lowercase
        ids = again.encode(composed)
        assert (ids == again.encode(decomposed)) == (form != "none")
        assert ids == again.encode(composed.upper().replace("FI", "\ufb01"))
        assert again.decode(ids) == normalize(composed, form, lowercase=True)
        assert again.unknown(composed.upper().replace("FI", "\ufb01")) == []


@pytest.mark.parametrize("make", [CharTokenizer, BPETokenizer])
def test_lower_case_is_that_of_single_letters(make):
    tokenizer = make(lowercase=True)
    tokenizer.build_vocab(["ΟΔΟΣ ΣΟΣ"])
    assert tokenizer.normalize("ΟΔΟΣ ΣΟΣ") == "οδοσ σοσ"
    assert tokenizer.decode(tokenizer.encode("ΟΔΟΣ ΣΟΣ")) == "οδοσ σοσ"


def test_normalize_applies_the_selected_form():
    assert normalize("e\u0301\r\n", "NFC") == "\u00e9\r\n"
    assert normalize("\ufb01", "NFKC") == "fi"
    assert normalize("A\u030a\r", "none") == "A\u030a\r"
    # one code point in lower case, two in upper case
    assert normalize("H\u0331", "NFC", lowercase=True) == "\u1e96"


@given(any_text, st.sampled_from(NORMALIZATION_FORMS))
def test_normalization_is_idempotent(text, form):
    once = normalize(text, form, lowercase=True)
    assert form == "none" or unicodedata.is_normalized(form, once)
    assert normalize(once, form) == once


@given(st.text())
def test_bpe_tokenizer_round_trips_any_text(bpe, text):
    ids = bpe.encode(text)
    assert (ids[0], ids[-1]) == (BOS, EOS)
    assert min(ids[1:-1], default=4) >= 4
    assert bpe.decode(ids) == text
    assert bpe.unknown(text) == []


def test_bpe_merges_frequent_pairs(bpe):
    assert bpe.vocab_size == 290
    assert [
        bpe.token_strings[token] for token in bpe.encode("the 🦊 then", add_special_tokens=False)
    ] == [*["the", " 🦊", " the", "n"]]
    assert len(bpe.encode("🦊 🦊")) < len(BPETokenizer().encode("🦊 🦊")) == 2 + 9
    assert bpe.token_strings[:4] == [""] * 4


def test_bpe_min_freq_excludes_rare_pairs():
    tokenizer = BPETokenizer(300)
    counts = tokenizer.build_vocab(["ab ab ab", "cd"], min_freq=2)
    assert counts == {"a": 3, "b": 3, " ": 2, "c": 1, "d": 1}
    assert "ab" in tokenizer.token_strings
    assert "cd" not in tokenizer.token_strings


def test_bpe_encodes_a_lone_surrogate_as_unk(bpe):
    assert bpe.encode("a\ud800b") == [
        BOS,
        *bpe.encode("a", False),
        UNK,
        *bpe.encode("b", False),
        EOS,
    ]
    assert bpe.unknown("a\ud800b\ud800") == ["\ud800"]
    assert BPETokenizer(270).build_vocab(["a\ud800b"]) == {"a": 1, "\ud800": 1, "b": 1}


def test_bpe_tokenizer_encodes_special_token_names_as_text(bpe):
    """Cover names that occur in the training text and in the library's vocabulary."""
    text = "<eos><pad> <unk> <bos>"
    library = tokenizers.Tokenizer.from_str(json.dumps(bpe.to_dict()))
    for tokenizer in (bpe, tokenizer_from_dict(bpe.to_dict())):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert min(ids) > EOS
        assert tokenizer.decode(ids) == text
        assert library.encode(text, add_special_tokens=False).ids == ids


@pytest.fixture
def saved_bpe(tmp_path) -> tuple[BPETokenizer, Path]:
    """Return a normalizing BPE tokenizer and the path of its vocabulary file."""
    tokenizer = BPETokenizer(300, "NFC", lowercase=True)
    tokenizer.build_vocab(TEXTS)
    path = tmp_path / "vocab.json"
    tokenizer.save(path)
    return tokenizer, path


def test_bpe_file_loads_in_hugging_face_tokenizers(saved_bpe):
    tokenizer, path = saved_bpe
    library = tokenizers.Tokenizer.from_file(str(path))
    assert library.get_vocab_size() == tokenizer.vocab_size
    for text in (*TEXTS, "NAI\u0308VE Cafe\u0301 <eos>"):
        assert library.encode(text).ids == tokenizer.encode(text)


def test_loaded_bpe_vocabulary_equals_the_saved_one(saved_bpe, tmp_path):
    tokenizer, path = saved_bpe
    loaded = load_tokenizer(path)
    assert isinstance(loaded, BPETokenizer)
    assert loaded.token_strings == tokenizer.token_strings
    assert loaded.sha256() == tokenizer.sha256()
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


@given(st.lists(st.integers(0, 289)))
def test_bpe_decoding_matches_hugging_face_tokenizers(bpe, ids):
    library = tokenizers.Tokenizer.from_str(json.dumps(bpe.to_dict()))
    assert bpe.decode(ids) == library.decode([token for token in ids if token > EOS])


@given(st.lists(st.integers(0, 289)))
def test_streamed_text_equals_decoded_text(bpe, ids):
    parts = list(bpe.stream(ids))
    assert "".join(parts) == bpe.decode(ids)
    assert all(parts)
    data = b"".join(bpe.token_strings[token].encode("utf-8", "surrogateescape") for token in ids)
    assert "".join(parts) == data.decode("utf-8", "replace")


@given(st.text())
def test_streamed_text_has_no_partial_characters(text):
    tokenizer = BPETokenizer()  # one token per byte
    assert list(tokenizer.stream(tokenizer.encode(text))) == list(text)
    data = tokenizer.encode("🦊")[1:-2]
    assert list(tokenizer.stream(data)) == ["\ufffd"]


def test_bpe_trains_on_a_long_run_of_spaces():
    tokenizer = BPETokenizer(vocab_size=270)
    tokenizer.build_vocab([" " * 1_000_000])  # takes hours if its time grows with the square
    assert tokenizer.token_strings[260:263] == [" " * 2, " " * 4, " " * 8]


def test_bpe_trains_on_a_long_text_without_spaces():
    tokenizer = BPETokenizer(vocab_size=264)
    tokenizer.build_vocab(["abcd" * 250_000])  # takes hours if its time grows with the square
    assert tokenizer.token_strings[260:262] == ["ab", "cd"]


def test_bpe_training_is_deterministic():
    code = (
        "from minigpt.tokenizer import BPETokenizer; from pathlib import Path;"
        "t = BPETokenizer(600, 'NFC');"
        "t.build_vocab(Path('data/raw/tales.txt').read_text().split('\\n\\n'));"
        "print(t.vocab_size, t.sha256())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "7")
    }
    assert len(found) == 1
    assert found.pop().startswith("600 ")


def test_changed_bpe_vocabulary_is_rejected(bpe):
    """Reject settings that change how the library splits, samples or matches special tokens."""

    def swap(values):
        values["model"]["vocab"] |= {"<eos>": 2, "<bos>": 3}

    def remove_a_byte(values):
        values["model"]["vocab"] = {
            token: i for i, token in enumerate(t for t in values["model"]["vocab"] if t != "!")
        }

    changes = [
        lambda values: values["model"].update(dropout=0.5),
        lambda values: values["model"].update(type="WordPiece"),
        lambda values: values["model"].update(continuing_subword_prefix="no"),  # a panic in Rust
        lambda values: values["model"]["merges"].append(["no", "such"]),
        lambda values: values["model"]["vocab"].popitem(),  # a panic in Rust
        lambda values: values["model"]["vocab"].update(more=1000),
        lambda values: values["model"]["vocab"].update({"日": 290}),
        lambda values: values["pre_tokenizer"].update(add_prefix_space=True),
        lambda values: values["normalizer"]["normalizers"].append({"type": "StripAccents"}),
        lambda values: values.update(added_tokens=added_eos_token()),
        swap,
        remove_a_byte,
    ]
    for change in changes:
        values = copy.deepcopy(bpe.to_dict())
        change(values)
        with pytest.raises(ValueError, match="not a byte-level BPE vocabulary"):
            tokenizer_from_dict(values)


def added_eos_token() -> list[dict]:
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    return [{"id": 3, "content": "<eos>", "special": True, **flags}]


def test_only_bpe_imports_the_tokenizers_library(bpe, tmp_path):
    CharTokenizer("ab").save(tmp_path / "char.json")
    bpe.save(tmp_path / "bpe.json")
    code = "import sys; from pathlib import Path; from minigpt.tokenizer import load_tokenizer;"
    code += "load_tokenizer(Path(sys.argv[1])).encode('ab'); print('tokenizers' in sys.modules)"
    for name, expected in (("char", "False"), ("bpe", "True")):
        command = [sys.executable, "-c", code, str(tmp_path / f"{name}.json")]
        assert (
            subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.strip()
            == expected
        )
