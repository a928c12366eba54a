"""Hostile and unusual inputs, each a function of a random generator.

`corpus` returns files that a correct reader returns unchanged, `odd_file` damaged or strange ones,
`changed_json` other values and texts in place of a correct JSON file.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet
from backports import zstd

# text with a meaning in one of the formats, in Unicode, or in a terminal
PIECES = [
    *['"', '""', ",", "\t", "\n", "\r\n", "\r", "\\", "\\n", "'", ";", "|", "#", "{", "[", "//"],
    *["\0", "\x1b[2J", "\x07", "\x1c", "\x85", "\u2028", "\ufeff", "\u202e", "\ufffd", "\u200b"],
    *["NA", "null", "None", "nan", "1e5", "True", "=1+1", "<eos>", "<|endoftext|>", "b'x'"],
    *["é", "e\u0301", "ß", "İ", "中文", "😀", "👨‍👩‍👧", "a", "word ", " ", "  ", "x" * 3000],
]


def text(rng: Random) -> str:
    """Return a short text of random pieces."""
    return "".join(rng.choices(PIECES, k=rng.choice([0, 1, 2, 5, 20])))


def texts(rng: Random) -> list[str]:
    return [text(rng) for _ in range(rng.choice([1, 2, 3, 30]))]


# --- files that are correct, if unusual ---------------------------------------------------------


def as_text(rng: Random, texts: list[str]) -> bytes:
    content = "\n".join(texts)  # of which readers drop a byte order mark
    marked = rng.random() < 0.5 or content.startswith("\ufeff")
    return content.encode("utf-8-sig" if marked else "utf-8")


def as_csv(rng: Random, texts: list[str], delimiter: str = ",") -> bytes:
    """Return a table with the texts in a random column."""
    width = rng.choice([1, 2, 4])
    at = rng.randrange(width)
    header = [f"column {i}" for i in range(width)]
    header[at] = "text"
    out = io.StringIO()
    # before Python 3.13, the writer puts \r in quotes only if rows end with it
    ends, quoting = rng.choice(
        [("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)]
    )
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=ends)
    writer.writerow(header)
    for value in texts:
        row = [text(rng) for _ in range(width)]
        row[at] = value
        writer.writerow(row)
    return rng.choice([b"", b"\xef\xbb\xbf"]) + out.getvalue().encode()


def as_tsv(rng: Random, texts: list[str]) -> bytes:
    return as_csv(rng, texts, delimiter="\t")


def as_jsonl(rng: Random, texts: list[str]) -> bytes:
    ascii_only, end = rng.random() < 0.5, rng.choice(["\n", "\r\n", "\n\n"])
    others = [{}, {"id": 10**30}, {"nested": {"text": [None, 1.5]}}, {"": float("nan")}]
    rows = [{**rng.choice(others), "text": value} for value in texts]
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    return rng.choice([b"", b"\xef\xbb\xbf"]) + end.join(lines).encode()


def as_parquet(rng: Random, texts: list[str]) -> bytes:
    kind = rng.choice(
        [
            pyarrow.string(),
            pyarrow.large_string(),
            pyarrow.binary(),
            pyarrow.large_binary(),
            pyarrow.string_view(),
            pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
        ]
    )
    values = pyarrow.array(texts, pyarrow.string())
    if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        values = pyarrow.array([value.encode() for value in texts], kind)
    elif pyarrow.types.is_dictionary(kind):
        values = values.dictionary_encode()
    else:
        values = values.cast(kind)
    table = pyarrow.table({"id": list(range(len(texts))), "text": values})
    out = io.BytesIO()
    options = {
        "compression": rng.choice(["none", "snappy", "gzip", "zstd", "brotli", "lz4"]),
        "row_group_size": rng.choice([1, 7, 1000]),
        "data_page_version": rng.choice(["1.0", "2.0"]),
        "use_dictionary": rng.random() < 0.5,
        "store_schema": rng.random() < 0.5,
    }
    pyarrow.parquet.write_table(table, out, **options)
    return out.getvalue()


FORMATS: dict[str, Callable[[Random, list[str]], bytes]] = {
    ".txt": as_text,
    ".md": as_text,
    ".csv": as_csv,
    ".tsv": as_tsv,
    ".jsonl": as_jsonl,
    ".parquet": as_parquet,
}


def no_compression(rng: Random, data: bytes) -> bytes:
    return data


def as_gz(rng: Random, data: bytes) -> bytes:
    """Compress in one or two members."""
    at = rng.choice([0, rng.randrange(len(data) + 1)])
    return b"".join(gzip.compress(part, rng.choice([0, 1, 9])) for part in (data[:at], data[at:]))


def as_zst(rng: Random, data: bytes) -> bytes:
    """Compress in one or two frames, behind a skippable one, in a stream or at once."""
    at = rng.choice([0, rng.randrange(len(data) + 1)])
    skippable = bytes.fromhex("502a4d18 03000000") + b"abc"
    options = {
        zstd.CompressionParameter.compression_level: rng.choice([1, 19]),
        zstd.CompressionParameter.window_log: rng.choice([10, 20, 27]),
        zstd.CompressionParameter.checksum_flag: rng.randrange(2),
        zstd.CompressionParameter.content_size_flag: rng.randrange(2),
    }
    frames = []
    for part in (data[:at], data[at:]):
        compressor = zstd.ZstdCompressor(options=options)
        if rng.random() < 0.5:
            frames.append(compressor.compress(part, zstd.ZstdCompressor.FLUSH_FRAME))
        else:
            frames.append(compressor.compress(part) + compressor.flush())
    return rng.choice([b"", skippable]) + b"".join(frames)


COMPRESSIONS = {"": no_compression, ".gz": as_gz, ".zst": as_zst}


def corpus(rng: Random) -> tuple[str, bytes, list[str]]:
    """Return the extension and the content of a correct file, and the texts in it."""
    extension, compression = rng.choice(list(FORMATS)), rng.choice(list(COMPRESSIONS))
    content = texts(rng)
    data = FORMATS[extension](rng, content)
    return extension + compression, COMPRESSIONS[compression](rng, data), content


# --- files that are not -------------------------------------------------------------------------


def damage(rng: Random, data: bytes) -> bytes:
    """Change `data` at random: flip, cut, insert, repeat, overwrite, or change the encoding."""
    at, length = rng.randrange(len(data) + 1), rng.choice([1, 2, 8, 100])
    match rng.randrange(8):
        case 0:
            return data[:at]
        case 1:
            return data[at:]
        case 2:
            return data[:at] + rng.randbytes(length) + data[at:]
        case 3:
            return data[:at] + rng.randbytes(length) + data[at + length :]
        case 4:
            return data[:at] + data[at + length :]
        case 5:
            return data[:at] + data[at : at + length] * 50 + data[at:]
        case 6:
            encoding = rng.choice(["utf-16", "utf-32-be", "utf-7", "cp1252", "cp037"])
            return data.decode("utf-8", "replace").encode(encoding, "replace")
        case _:
            flipped = bytearray(data)
            for _ in range(length if data else 0):
                flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            return bytes(flipped)


def deep(rng: Random) -> bytes:
    """Return JSON or YAML that is nested deeply."""
    opening, closing = rng.choice([("[", "]"), ('{"text":', "}"), ('{"a":[', "]}")])
    depth = rng.choice([100, 5_000, 200_000])
    inner = rng.choice(["1", '"x"', ""])
    return (opening * depth + inner + closing * rng.choice([0, depth])).encode()


def deep_field(rng: Random) -> bytes:
    return b'{"text": ' + deep(rng) + b"}\n"


def numbers(rng: Random) -> bytes:
    """Return JSON lines whose text is a number, out of range or not."""
    values = ["1" * 5000, "1e999", "-0", "NaN", "Infinity", "0.1", "true", "[]", "{}", "1e-999"]
    return "".join(f'{{"text": {value}}}\n' for value in rng.choices(values, k=3)).encode()


def surrogates(rng: Random) -> bytes:
    """Return lone surrogates: as JSON escapes, or as bytes that UTF-8 does not allow."""
    half = rng.choice(["\ud83d", "\udc00", "\udcff"])
    plain = json.dumps({"text": f"a{half}b"})
    raw = json.dumps({"text": f"a{half}b"}, ensure_ascii=False)
    return rng.choice([plain, raw, half]).encode("utf-8", "surrogatepass")


def one_byte(rng: Random) -> bytes:
    """Return one byte, repeated: zeros, quotes, delimiters, line ends, escapes."""
    return rng.choice(
        [b"\0", b'"', b",", b"\t", b"\n", b"\r", b"\x1b", b"\xff", b"{", b"a", b"\\"]
    ) * (rng.choice([1, 2, 3, 1000, 1 << 20]))


def header_alone(rng: Random) -> bytes:
    return rng.choice(
        [b"text", b"text\n", b"\ntext\n", b"text,text\na,b\n", b'"text', b'"text"x\n1\n']
    )


def ragged(rng: Random) -> bytes:
    """Return a table whose rows have fewer or more fields than its header."""
    rows = ["a,text,c"] + [",".join(["x"] * rng.choice([1, 2, 3, 3, 3, 4, 9])) for _ in range(5)]
    return "\n".join(rows).encode()


def many_columns(rng: Random) -> bytes:
    return ",".join(f"c{i}" for i in range(20_000)).encode() + b",text\n" + b"," * 20_000 + b"x\n"


def bomb(rng: Random) -> bytes:
    """Return 16 MB that compress to a few kilobytes."""
    return rng.choice([b"\0", b"a", b"a\n", b'{"text": "a"}\n', b"\n"]) * (1 << 20)


def odd_parquet(rng: Random) -> bytes:
    """Return a Parquet file whose text column is not of text."""
    values = rng.choice(
        [
            [[b"\xff\xfe"], pyarrow.binary()],
            [[1, None], pyarrow.int64()],
            [[["a"], None], pyarrow.list_(pyarrow.string())],
            [[{"a": "b"}], pyarrow.struct({"a": pyarrow.string()})],
            [[[("a", "b")]], pyarrow.map_(pyarrow.string(), pyarrow.string())],
            [[None, None], pyarrow.null()],
            [[1.5, float("nan")], pyarrow.float64()],
            [[0, 10**15], pyarrow.timestamp("us")],
            [[], pyarrow.string()],
            [[b"ab"], pyarrow.binary(2)],
            [[True], pyarrow.bool_()],
        ]
    )
    arrays, names = [pyarrow.array(*values)], ["text"]
    if rng.random() < 0.2:
        arrays, names = arrays * 2, names * 2
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, names), out)
    return out.getvalue()


def invalid_utf8_parquet(rng: Random) -> bytes:
    """Return a Parquet file with a column declared as text that is not UTF-8."""
    buffer = pyarrow.array([b"caf\xe9", b"ok"], pyarrow.binary())
    values = pyarrow.Array.from_buffers(pyarrow.string(), 2, buffer.buffers())
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), out)
    return out.getvalue()


def nested_archive(rng: Random) -> bytes:
    data = b"some text\n"
    for _ in range(rng.choice([2, 3, 10])):
        data = COMPRESSIONS[rng.choice([".gz", ".zst"])](rng, data)
    return data


def random_bytes(rng: Random) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 10, 1000, 100_000]))


def magic(rng: Random) -> bytes:
    """Return the first bytes of another kind of file, and noise."""
    starts = [b"PK\x03\x04", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"%PDF-1.7", b"\x89PNG\r\n"]
    ends = [b"", b"PAR1", rng.randbytes(4) + b"PAR1", b"\0" * 8]
    return rng.choice(starts) + rng.randbytes(rng.choice([0, 4, 100])) + rng.choice(ends)


ODDITIES = [
    *[deep, deep_field, numbers, surrogates, one_byte, header_alone, ragged, many_columns, bomb],
    *[odd_parquet, invalid_utf8_parquet, nested_archive, random_bytes, magic],
]


def odd_file(rng: Random) -> tuple[str, bytes]:
    """Return the extension and the content of a damaged or strange file."""
    if rng.random() < 0.5:
        extension, data, _ = corpus(rng)
        for _ in range(rng.choice([1, 1, 1, 3])):
            data = damage(rng, data)
        return extension, data
    data = rng.choice(ODDITIES)(rng)
    compression = rng.choice(list(COMPRESSIONS))
    return rng.choice(list(FORMATS)) + compression, COMPRESSIONS[compression](rng, data)


# --- JSON and YAML ------------------------------------------------------------------------------

VALUES: list[Any] = [
    *[None, True, False, 0, -1, 3, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("-inf")],
    *["", "x", "\0", "ab", "\ud83d", "é" * 1000, "1", "pretrained/../x", "\x1b[2J\nb", "[0-", "**"],
    *[[], {}, [[]], {"a": None}, ["a", "a"], [1, "a"], {"type": "BPE"}],
]


def change(rng: Random, value: Any) -> Any:
    """Return `value` with one random part replaced, removed, or added."""
    if rng.random() < 0.3 or not isinstance(value, list | dict) or not value:
        return rng.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    copy = value.copy()
    match rng.randrange(6):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, dict):
            copy[rng.choice(["", "x", "type", 1])] = rng.choice(VALUES)
        case 1:
            copy.append(rng.choice([*VALUES, value[key]]))
        case 2:
            copy[key] = rng.choice(VALUES)
        case _:
            copy[key] = change(rng, value[key])
    return copy


def changed_json(rng: Random, value: Any) -> bytes:
    """Return the JSON of `value`, changed as a value or as bytes, or a strange JSON text."""
    if rng.random() < 0.1:
        return rng.choice([deep, numbers, one_byte, random_bytes, magic])(rng)
    if rng.random() < 0.3:
        return damage(rng, json.dumps(value).encode())
    for _ in range(rng.choice([1, 1, 3])):
        value = change(rng, value)
    return json.dumps(value).encode()


YAML_TEXTS = [
    b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]",
    *[b"a: *a", b"&a [*a]", b"<<: *x", b"data:\n  <<: {path: x}", b"a: 1\na: 2", b"? [a]\n: b"],
    *[b"!!python/object/apply:os.system ['id']", b"data: !!binary x", b"!!int x", b"!!timestamp x"],
    *[
        b"!!set {a}",
        b"!!omap [a]",
        b"!x y",
        b"--- a\n--- b",
        b"%YAML 9.9\n---\na",
        b"\t",
        b"\0",
        b"",
    ],
    *[b"- " * 5000, b"{" * 5000, b"[" + b"a: " * 5000, b"a: " + b"9" * 5000, b"a: 1e" + b"9" * 400],
    *[b"\xef\xbb\xbfdata: 1", b'data: "\\ud83d"', b"data: {path: 2020-01-01}", b"a: 0o7777777777"],
]
