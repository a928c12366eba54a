import re
from collections import defaultdict

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from minigpt.corpus import Corpus, split_of
from minigpt.errors import UserError

TALES = ROOT / "data/raw/tales.txt"


def documents(path, **options) -> list[str]:
    return [document for document, _ in Corpus(str(path), **options)]


def test_sentences_have_the_golden_vocabulary_and_hold_nothing_out(sentences):
    assert 40 <= len(sentences) <= 60
    characters = sorted(set("".join(sentences)))
    assert len(characters) == 36
    assert characters[:2] == [" ", "!"]
    assert characters[9:] == ["T", *"abcdefghijklmnopqrstuvwxyz"]
    assert "The quick brown fox jumps over the lazy dog." in sentences
    assert "Python is a great programming language." in sentences
    assert {split for _, split in Corpus(str(ROOT / "data/raw/sentences.txt"))} == {"train"}


def test_tales_are_many_long_enough_and_varied():
    assert TALES.stat().st_size >= 200_000
    tales = documents(TALES)
    places = defaultdict(set)  # eight-word sequence → the tales it stands in
    words = set()
    for number, tale in enumerate(tales):
        found = re.findall(r"[a-z'-]+", tale.lower())
        assert 100 <= len(tale.split()) <= 250
        words.update(found)
        for start in range(len(found) - 7):
            places[tuple(found[start : start + 8])].add(number)
    assert len(words) >= 3000
    assert max(map(len, places.values())) <= 2


def test_documents_by_line_blank_line_and_file(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n \nthree\rfour\n\n\n")
    assert documents(file, documents="line") == ["one", "two", "three", "four"]
    assert documents(file) == documents(file, documents="blank_line") == ["one\ntwo", "three\nfour"]
    assert documents(file, documents="file") == ["one\ntwo\n\n \nthree\nfour"]


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    for name, text in {"b.txt": "2", "a.md": "1", "sub/c.txt": "3", "d.png": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert documents(tmp_path) == ["1", "2", "3"]


@given(st.text(), st.floats(0, 1))
def test_the_split_depends_on_the_document_alone_and_grows_with_the_fraction(document, fraction):
    assert split_of(document, fraction) == split_of(document, fraction)
    if split_of(document, fraction) == "val":
        assert split_of(document, min(1.0, fraction + 0.1)) == "val"
    assert split_of(document, 0.0) == "train"
    assert split_of(document, 1.0) == "val"


def test_about_a_tenth_is_held_out_and_equal_documents_stay_together(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("\n".join(f"document {number % 1000}" for number in range(2000)))
    splits = defaultdict(set)
    for document, split in Corpus(str(file), documents="line"):
        splits[split].add(document)
    assert not splits["train"] & splits["val"]
    assert 70 <= len(splits["val"]) <= 130


def test_bad_input_is_named(tmp_path):
    binary, empty = tmp_path / "binary.txt", tmp_path / "empty.txt"
    binary.write_bytes(b"fine\n\xff\xfe")
    empty.write_text("\n \n")
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, message in [
        (binary, r"binary\.txt: not UTF-8 text at byte 5"),
        (empty, r"empty\.txt: holds no text"),
        (folder, r"folder: a folder without \.txt or \.md files"),
        (tmp_path / "missing.txt", r"missing\.txt: no such file or folder"),
        (tmp_path / "python-docs", r"minigpt-cli fetch python-docs"),
    ]:
        with pytest.raises(UserError, match=message):
            documents(path)
