import csv
import gzip
import io
import json
import os
import re
import socket
import tracemalloc
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from conftest import ROOT, data_config
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.corpus.corpus import Corpus, cut, split_of
from minigpt.corpus.hash_set import HashSet
from minigpt.corpus.readers import read_csv

TALES = ROOT / "data/raw/tales.txt"


def documents(path, **options) -> list[str]:
    return [document.text for document in Corpus(data_config(path, **options))]


def splits(path, **options) -> dict[str, list[str]]:
    found = defaultdict(list)
    for document in Corpus(data_config(path, **options)):
        found[document.split].append(document.text)
    return found


def test_sentences_give_the_golden_vocabulary(sentences):
    assert 40 <= len(sentences) <= 60
    characters = sorted(set("".join(sentences)))
    assert len(characters) == 36
    assert characters[:2] == [" ", "!"]
    assert characters[9:] == ["T", *"abcdefghijklmnopqrstuvwxyz"]
    assert "The quick brown fox jumps over the lazy dog." in sentences
    assert "Python is a great programming language." in sentences


def test_sentences_have_no_validation_split():
    assert set(splits(ROOT / "data/raw/sentences.txt")) == {"train"}


def test_tales_have_the_expected_length():
    assert TALES.stat().st_size >= 200_000
    assert all(100 <= len(tale.split()) <= 250 for tale in documents(TALES))


def test_tales_have_a_varied_vocabulary():
    tales = documents(TALES)
    places = defaultdict(set)  # eight consecutive words → tales that contain them
    words = set()
    for number, tale in enumerate(tales):
        found = re.findall(r"[a-z'-]+", tale.lower())
        words.update(found)
        for start in range(len(found) - 7):
            places[tuple(found[start : start + 8])].add(number)
    assert len(words) >= 3000
    assert max(map(len, places.values())) <= 2


MESSY = b"\xef\xbb\xbfone\r\ntwo\r\n\r\n \nthree\rfour\n\n\n"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("line", ["one", "two", "three", "four"]),
        ("blank_line", ["one\ntwo", "three\nfour"]),
        ("auto", ["one\ntwo", "three\nfour"]),
        ("file", ["one\ntwo\n\n \nthree\nfour"]),
    ],
)
def test_text_file_is_split_into_documents(tmp_path, unit, expected):
    file = tmp_path / "a.txt"
    file.write_bytes(MESSY)
    assert documents(file, documents=unit) == expected


def test_separator_splits_documents(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one<|endoftext|>two\nlines<|endoftext|><|endoftext|>\n\nthree\n")
    assert documents(file, documents="separator") == ["one", "two\nlines", "three"]
    file.write_text("a\n--\nb\n-\n--\nc")
    assert documents(file, documents="separator", separator="\n--\n") == ["a", "b\n-", "c"]


@given(st.lists(st.text("ab-", max_size=6)), st.text("ab-\n", min_size=1, max_size=4))
def test_documents_are_what_split_gives(lines, separator):
    assert list(cut(lines, "separator", separator)) == "".join(f"{line}\n" for line in lines).split(
        separator
    )


@given(st.text("ab\n", min_size=1).filter(str.strip), st.sampled_from([0.0, 0.1, 0.5, 0.9]))
def test_stream_is_split_once_by_position(tmp_path_factory, text, fraction):
    file = tmp_path_factory.mktemp("stream") / "a.txt"
    file.write_text(text)
    found = list(Corpus(data_config(file, documents="none", val_fraction=fraction)))
    whole = "".join(document.text for document in found)
    assert whole == text.removesuffix("\n") + "\n"
    train = "".join(document.text for document in found if document.split == "train")
    assert len(train) == round(len(whole) * (1 - fraction))
    assert whole.startswith(train)
    for split in {document.split for document in found}:
        chunks = [document for document in found if document.split == split]
        assert [chunk.begins for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
        assert [chunk.ends for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


TEXTS = ["one", 'two,\nwith "quotes"\tand a tab', "NA", "naïve 🦊"]


def tables(folder) -> dict:
    frame = pd.DataFrame({"id": range(len(TEXTS)), "text": TEXTS})
    frame.to_csv(folder / "a.csv", index=False)
    frame.to_csv(folder / "a.tsv", index=False, sep="\t")
    frame.to_json(folder / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(folder / "a.parquet")
    return {file.suffix: file for file in folder.iterdir()}


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_tables_are_read_in_every_format(tmp_path, ending, compression):
    file = tables(tmp_path)[ending]
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}[compression]
    packed = tmp_path / "sub" / (file.name + compression)
    packed.parent.mkdir()
    packed.write_bytes(compress(file.read_bytes()))
    assert documents(packed) == TEXTS
    assert documents(packed.parent) == TEXTS
    with pytest.raises(
        UserError, match=r"no column 'body'; set data.text_column to one of: 'id', 'text'"
    ):
        documents(packed, text_column="body")


def test_data_format_overrides_the_extension(tmp_path):
    file = tmp_path / "table.dat"
    file.write_text("text\nhello\n")
    assert documents(file, format="csv") == ["hello"]
    assert documents(file, format="text") == ["text\nhello"]


def test_unknown_extension_is_reported(tmp_path):
    file = tmp_path / "table.dat"
    file.write_text("text\nhello\n")
    with pytest.raises(
        UserError, match=r"table\.dat: cannot infer the format from the extension; set data\.format"
    ):
        documents(file)


def test_folder_is_read_in_name_order(tmp_path):
    files = {"b.txt": "2", "a.md": "1", "sub/c.txt": "3", "d.png": "no", ".hidden.txt": "no"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert documents(tmp_path) == ["1", "2", "3"]
    assert documents(tmp_path, pattern="*.txt") == ["2", "3"]
    with pytest.raises(UserError, match=r"no file matches data\.pattern '\*\.csv'"):
        documents(tmp_path, pattern="*.csv")


def test_hidden_folders_are_left_out(tmp_path):
    for name in (".git/a.txt", "sub/.ipynb_checkpoints/b.txt", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert documents(tmp_path) == ["sub/c.txt"]
    assert documents(tmp_path / ".git") == [".git/a.txt"]


def test_extensions_are_case_insensitive(tmp_path):
    (tmp_path / "a.TXT").write_text("one")
    (tmp_path / "b.Csv.GZ").write_bytes(gzip.compress(b"text\ntwo\n"))
    assert documents(tmp_path) == ["one", "two"]


def test_data_format_applies_to_folders(tmp_path):
    (tmp_path / "a.log").write_text("one")
    (tmp_path / "b.csv").write_text("two")
    assert documents(tmp_path, format="text") == ["one", "two"]


@pytest.mark.parametrize("pattern", ["/etc/*", "**x", "../*", "sub/../../*"])
def test_patterns_cannot_leave_the_folder(tmp_path, pattern):
    (tmp_path / "outside.txt").write_text("private")
    (tmp_path / "text").mkdir()
    with pytest.raises(UserError, match=r"data\.pattern: '.*' is not a pattern for files in"):
        documents(tmp_path / "text", pattern=pattern)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_not_read(tmp_path):
    for name in ("pipe", "socket", "link"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("one")
    os.mkfifo(tmp_path / "pipe/b.txt")
    (tmp_path / "link/b.txt").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket/b.txt"))
    paths = [tmp_path / "pipe", tmp_path / "pipe/b.txt", tmp_path / "socket", tmp_path / "link"]
    for path in (*paths, "/dev/zero"):
        with pytest.raises(UserError, match="neither a file nor a folder"):
            documents(path)
    assert documents(tmp_path / "pipe", pattern="a*") == ["one"]


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("one")
    assert documents("~/a.txt") == ["one"]
    with pytest.raises(UserError, match=r"^~nobody-has-this-name/a\.txt: not found"):
        documents("~nobody-has-this-name/a.txt")


fields = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"))


@given(st.lists(st.tuples(fields, fields), max_size=5), st.sampled_from([",", "\t"]))
def test_csv_fields_are_read_as_written(rows, delimiter):
    table = io.StringIO(newline="")
    csv.writer(table, delimiter=delimiter).writerows([("id", "text"), *rows])
    found = read_csv(table.getvalue().split("\r\n"), Path("a.csv"), "text", delimiter)
    assert list(found) == [text for _, text in rows]


def test_csv_lines_may_end_in_carriage_returns(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b'id,text\r1,"a\r\nb"\r2,c\r\r\n3,d')
    assert documents(file) == ["a\nb", "c", "d"]


def test_csv_cells_are_kept_as_they_are(tmp_path):
    file = tmp_path / "a.csv"
    cells = ["007", "1e5", "NaN", "# no comment", " spaces ", "True", "x" * 200_000]
    file.write_text("\n\ntext,\n" + "".join(f"{cell},\n\n" for cell in cells))
    assert documents(file) == cells


def test_compressed_parquet_is_not_held_in_memory(tmp_path):
    file = tmp_path / "a.parquet.gz"
    table = pa.table({"text": ["short"] * 9, "other": [os.urandom(1_000_000) for _ in range(9)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    file.write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes(), 0))
    tracemalloc.start()
    assert documents(file, deduplicate=False) == ["short"] * 9
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def test_parquet_bytes_are_decoded(tmp_path):
    file = tmp_path / "a.parquet"
    values = {"binary": ["café".encode(), None], "bad": [b"fine", b"caf\xe9"]}
    text = pa.array(values["bad"]).cast(pa.string(), safe=False)
    table = {"binary": values["binary"], "bad": values["bad"], "text": text, "number": [1, 2]}
    pq.write_table(pa.table({**table, "list": [["a"], ["b"]]}), file)
    assert documents(file, text_column="binary") == ["café"]
    for column in ("bad", "text"):
        with pytest.raises(UserError, match=r"a\.parquet: row 2: not UTF-8 text at byte 3"):
            documents(file, text_column=column)
        found = documents(file, text_column=column, invalid_utf8="replace")
        assert found == ["fine", "caf\ufffd"]
    for column, kind in (("number", "int64"), ("list", "list<.*>")):
        with pytest.raises(UserError, match=f"column '{column}' has the type {kind}, not text"):
            documents(file, text_column=column)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_parquet_types_of_text_are_read(tmp_path, kind):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["a", None, "b"]).cast(kind)}), file)
    assert documents(file) == ["a", "b"]


def test_large_zstandard_windows_are_read(tmp_path):
    file = tmp_path / "a.txt.zst"
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 28})
    file.write_bytes(compressor.compress(b"text") + compressor.flush())
    assert documents(file) == ["text"]


def test_duplicate_documents_are_dropped(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one\n\ntwo\n\none\n\none")
    corpus = Corpus(data_config(file))
    assert [document.text for document in corpus] == ["one", "two"]
    assert corpus.documents_dropped == 2
    assert documents(file, deduplicate=False) == ["one", "two", "one", "one"]


def test_documents_are_normalized(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("cafe\u0301 ﬁne", encoding="utf-8")
    assert documents(file) == ["café ﬁne"]
    assert documents(file, normalization="NFKC") == ["café fine"]
    assert documents(file, normalization="none") == ["cafe\u0301 ﬁne"]


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_hash_set_equals_a_python_set(values):
    seen, hashes = set(), HashSet(max_recent=3)
    for value in values:
        assert hashes.add(value) == (value not in seen)
        seen.add(value)


@given(st.integers(0, 2**64 - 1), st.floats(0, 1))
def test_validation_split_grows_with_the_fraction(digest, fraction):
    if split_of(digest, fraction) == "val":
        assert split_of(digest, min(1.0, fraction + 0.1)) == "val"
    assert split_of(digest, 0.0) == "train"


def test_added_text_keeps_documents_in_their_split(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("\n".join(f"document {number % 1000}" for number in range(1500)))
    before = splits(file, documents="line", deduplicate=False)
    assert not set(before["train"]) & set(before["val"])
    assert 70 <= len(set(before["val"])) <= 130
    file.write_text("new\n" + file.read_text() + "\nmore")
    after = splits(file, documents="line")
    assert set(before["train"]) <= set(after["train"])
    assert set(before["val"]) <= set(after["val"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "binary.txt",
            b"fine\n\xff\xfe",
            r"binary\.txt: not UTF-8 text at byte 5; save it as UTF-8, or set data\.invalid",
        ),
        ("binary.csv", b"text\nfine\n\xff\n", r"binary\.csv: not UTF-8 text at byte 10"),
        ("empty.txt", b"\n \n", r"empty\.txt: no text found"),
        ("empty.csv", b"", r"empty\.csv: no text found"),
        (
            "torn.txt.gz",
            gzip.compress(b"text" * 999, mtime=0)[:-9],
            r"torn\.txt\.gz: damaged, or not compressed",
        ),
        ("wrong.txt.gz", b"no gzip", r"wrong\.txt\.gz: damaged, or not compressed"),
        ("wrong.txt.zst", b"no zstd", r"wrong\.txt\.zst: damaged, or not compressed"),
        ("wrong.parquet", b"no parquet", r"wrong\.parquet: damaged, or not a Parquet file"),
        ("wrong.jsonl", b'{"text": "a"}\n{"text"', r"wrong\.jsonl: line 2 is not JSON"),
        ("list.jsonl", b"[1, 2]", r"list\.jsonl: line 1: no column 'text'"),
        (
            "torn.txt.zst",
            zstd.compress(b"text" * 999)[:-2],
            r"torn\.txt\.zst: damaged, or not compressed",
        ),
        ("binary.csv.zst", zstd.compress(b"text\nfine\n\xff\n"), "not UTF-8 text at byte 10"),
        ("long.csv", b"text,b\n1,2\n1,2,3\n", r"long\.csv: line 3: 3 fields, .* header has 2"),
        ("comma.csv", b"id,text\n1,a b\n2,c, d\n", r"comma\.csv: line 3: 3 fields"),
        ("short.tsv", b"id\ttext\n1\n", r"short\.tsv: line 2: 1 fields"),
        ("open.csv", b'text\n"a\n', r"open\.csv: line 2: not a table: unexpected end"),
        ("twice.csv", b"text,text\n1,2\n", "several columns are named 'text'"),
        ("deep.jsonl", b"[" * 99_999, r"deep\.jsonl: line 1 is not JSON: nested too deeply"),
        ("number.jsonl", b'{"text": 7}', r"number\.jsonl: line 1: 'text' holds int, not text"),
        ("nan.jsonl", b'{"text": NaN}', "line 1: 'text' holds float, not text"),
        ("list.jsonl", b'{"text": ["a"]}', "line 1: 'text' holds list, not text"),
    ],
)
def test_input_error_is_one_line_that_names_the_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        documents(tmp_path / name)
    assert "\n" not in str(error.value)


def test_missing_path_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"names\.txt: not found;.*: minigpt-cli fetch names$"):
        documents(tmp_path / "names.txt")
    with pytest.raises(UserError, match=r"mine\.txt: not found; set data.path to your text$"):
        documents(tmp_path / "mine.txt")
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        documents(tmp_path / ("a" * 300))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match=r"folder\.txt: no file matches"):
        documents(tmp_path / "folder.txt")


def test_source_code_is_text(tmp_path):
    code = "def f():\n    return 1\n\n\nprint(f())\n"
    (tmp_path / "package").mkdir()
    (tmp_path / "package/a.py").write_text(code)
    (tmp_path / "package/a.pyc").write_bytes(b"\xff\0")
    with pytest.raises(UserError, match=r"as text, set data\.format to text"):
        Corpus(data_config(tmp_path, pattern="*.py"))
    changes = {"format": "text", "pattern": "*.py", "documents": "file"}
    (document,) = Corpus(data_config(tmp_path, **changes))
    assert document.text == code.strip()


def test_unusual_text_is_kept(tmp_path):
    file = tmp_path / "odd.jsonl"
    odd = ["שלום עולם", "👩‍👩‍👧‍👦 family", "nul\0inside", "x" * 1_000_000]
    lines = [json.dumps({"text": text}) for text in odd]
    file.write_text("\n".join([*lines, '{"text": "half \\ud83d pair"}', '{"text": null}']))
    assert documents(file) == [*odd, "half \ufffd pair"]
    assert documents(file, invalid_utf8="replace")[:4] == odd


def test_invalid_utf8_can_be_replaced(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"a\xffb")
    assert documents(tmp_path / "bad.txt", invalid_utf8="replace") == ["a\ufffdb"]
