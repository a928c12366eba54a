"""Pinned downloads, against a server on the loopback that does what servers do on a bad day."""

import hashlib
import os
import random
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT
from filelock import FileLock

from minigpt.cli.app import main
from minigpt.common.errors import UserError
from minigpt.corpus import fetch as module
from minigpt.corpus.fetch import CORPORA, Download, download, fetch

BODY = random.Random(0).randbytes(100_000)


class Server(ThreadingHTTPServer):
    """Answers as `answer(request)` does, and keeps the Range header (or None) of each request."""

    daemon_threads = False  # closing the server waits for its threads, so that no socket stays open

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Request)
        self.url = f"http://127.0.0.1:{self.server_port}/text.txt"
        self.ranges = []
        self.closing = threading.Event()
        self.answer = Request.send_from_range

    def handle_error(self, request, client_address):
        """A client that hangs up is no failure of the server's."""


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.ranges.append(self.headers["Range"])
        self.server.answer(self)

    def log_message(self, *args):
        pass

    def send(self, body: bytes, status: int = 200, **headers: object) -> None:
        """`length=None` sends no Content-Length: the end of the connection is the end of the body."""
        self.send_response(status)
        # said aloud, or a client would send its next request into a connection that closes
        for name, value in {"Content_Length": len(body), "Connection": "close", **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def send_from_range(self) -> None:
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        content_range = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        self.send(
            BODY[start:], 206 if start else 200, Content_Range=content_range if start else None
        )

    def stall(self, sent: int) -> None:
        self.send(BODY[:sent], Content_Length=len(BODY))
        self.server.closing.wait(60)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def tiny(server, monkeypatch) -> Download:
    """The corpus that the server has, and the only one in the table."""
    corpus = Download(
        "tiny", "random bytes", "none", len(BODY), server.url, hashlib.sha256(BODY).hexdigest()
    )
    monkeypatch.setattr(module, "CORPORA", {"tiny": corpus})
    return corpus


def names(folder) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def refused(folder) -> str:
    """The message of a fetch that must fail."""
    with pytest.raises(UserError) as error:
        fetch("tiny", folder)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_download_is_whole_and_a_second_one_makes_no_request(tiny, server, tmp_path, capsys):
    folder = tmp_path / "data/raw"
    for note in (f"tiny: 100,000 bytes from {server.url}, checked\n", "tiny: already here\n"):
        assert fetch("tiny", folder) == folder / "tiny.txt"
        assert (folder / "tiny.txt").read_bytes() == BODY
        assert capsys.readouterr() == ("", note)
    assert server.ranges == [None]
    assert names(folder) == ["tiny.txt"]


def test_an_existing_wrong_file_is_replaced_after_a_good_download_only(tiny, server, tmp_path):
    target = tmp_path / "tiny.txt"
    target.write_bytes(b"\0" * len(BODY))
    server.answer = lambda request: request.send(b"gone", 500)
    refused(tmp_path)
    assert target.read_bytes() == b"\0" * len(BODY)
    server.answer = Request.send_from_range
    download(tiny, tmp_path)
    assert target.read_bytes() == BODY


WRONG = {
    "other bytes": (lambda request: request.send(b"\0" * len(BODY)), "its SHA-256 is another"),
    "too few": (lambda request: request.send(BODY[:-1]), "has 99,999 bytes, and not 100,000"),
    "too many": (lambda request: request.send(BODY * 2), "has 200,000 bytes, and not 100,000"),
    "no end": (
        lambda request: request.send(BODY * 9, Content_Length=None),
        "has more than 100,000 bytes",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_nothing_is_kept_of_a_wrong_file(tiny, server, tmp_path, name):
    server.answer, message = WRONG[name]
    assert message in refused(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("length", [len(BODY), None])
def test_a_cut_connection_goes_on_where_it_broke_off(tiny, server, tmp_path, length):
    server.answer = lambda request: request.send(BODY[:70_000], Content_Length=length)
    message = refused(tmp_path)
    done = (tmp_path / "tiny.txt.part").stat().st_size
    assert 70_000 - module.CHUNK < done <= 70_000
    assert message == (
        f"{server.url}: the connection was closed; "
        f"{done:,} of 100,000 bytes are here: run the command again to go on from there"
    )
    assert names(tmp_path) == ["tiny.txt.part"]
    server.answer = Request.send_from_range
    assert fetch("tiny", tmp_path).read_bytes() == BODY
    assert server.ranges == [None, f"bytes={done}-"]
    assert names(tmp_path) == ["tiny.txt"]


def test_a_server_that_knows_no_ranges_sends_it_all_again(tiny, server, tmp_path):
    (tmp_path / "tiny.txt.part").write_bytes(BODY[:70_000])
    server.answer = lambda request: request.send(BODY)
    assert fetch("tiny", tmp_path).read_bytes() == BODY
    assert server.ranges == ["bytes=70000-"]


@pytest.mark.parametrize("status", [206, 416])
def test_a_piece_of_something_else_is_thrown_away(tiny, server, tmp_path, status):
    (tmp_path / "tiny.txt.part").write_bytes(b"\0" * 70_000)
    server.answer = lambda request: request.send(BODY[70_000:] if status == 206 else b"", status)
    assert (
        "SHA-256 is another" if status == 206 else "ends before byte 70,000 of 100,000"
    ) in refused(tmp_path)
    assert names(tmp_path) == []


def test_a_piece_that_is_too_long_is_not_gone_on_with(tiny, server, tmp_path):
    (tmp_path / "tiny.txt.part").write_bytes(BODY + b"\0")
    assert fetch("tiny", tmp_path).read_bytes() == BODY
    assert server.ranges == [None]


@pytest.mark.parametrize("sent", [0, 70_000])
def test_a_server_that_stalls_is_given_up(tiny, server, tmp_path, monkeypatch, sent):
    monkeypatch.setattr(module, "TIMEOUT", 0.3)
    server.answer = lambda request: request.stall(sent)
    assert refused(tmp_path).startswith(f"{server.url}: nothing came for 0.3 s; ")
    server.answer = lambda request: server.closing.wait(60)
    assert refused(tmp_path).startswith(f"{server.url}: nothing came for 0.3 s; ")
    server.answer = Request.send_from_range
    assert fetch("tiny", tmp_path).read_bytes() == BODY
    assert (server.ranges[-1] is None) == (sent == 0)


def test_an_error_of_the_server_keeps_the_piece_that_is_here(tiny, server, tmp_path):
    (tmp_path / "tiny.txt.part").write_bytes(BODY[:70_000])
    server.answer = lambda request: request.send(b"not here", 404)
    assert refused(tmp_path).startswith(f"{server.url}: the server answers 404 Not Found; ")
    assert names(tmp_path) == ["tiny.txt.part"]


def test_redirects_are_followed_but_not_for_ever(tiny, server, tmp_path):
    def answer(request):
        if request.path == "/text.txt":
            request.send(b"", 302, Location="/moved.txt")
        else:
            request.send_from_range()

    server.answer = lambda request: request.send(b"", 302, Location="/text.txt")
    assert refused(tmp_path).startswith(f"{server.url}: more than 5 redirects; ")
    assert len(server.ranges) == 6
    server.answer = answer
    assert fetch("tiny", tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/text.txt", "Connection refused"),
        ("http://nowhere.invalid/text.txt", "Name or service not known"),
        ("http://", "Invalid URL 'http://': No host supplied"),
    ],
)
def test_a_server_that_cannot_be_reached_is_one_line(tiny, tmp_path, monkeypatch, url, reason):
    def resolve(*args):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    if "nowhere" in url:
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setitem(module.CORPORA, "tiny", replace(tiny, url=url))
    assert refused(tmp_path) == f"{url}: {reason}; check the network and run the command again"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_and_a_folder_that_is_a_file(tiny, tmp_path):
    (tmp_path / "tiny.txt.part").symlink_to("/dev/full")
    message = f"{tmp_path}: No space left on device; mend that and run the command again"
    assert refused(tmp_path) == message
    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file").startswith(f"{tmp_path / 'file'}: File exists; ")


def test_one_process_at_a_time(tiny, tmp_path):
    with FileLock(tmp_path / "tiny.txt.lock"):
        assert refused(tmp_path).startswith(
            f"{tmp_path / 'tiny.txt'}: another process is downloading it; "
        )
    (tmp_path / "tiny.txt.lock").touch()  # left by a process that was killed
    fetch("tiny", tmp_path)
    assert names(tmp_path) == ["tiny.txt"]


def run(monkeypatch, *args: str) -> int | str | None:
    """minigpt-cli in this process; returns what it exits with."""
    monkeypatch.setattr(sys, "argv", ["minigpt-cli", *args])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_the_command_prints_where_it_is_and_what_to_do_next(
    tiny, server, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "fetch", "tiny") == 0
    out, err = capsys.readouterr()
    assert out == "data/raw/tiny.txt\ntrain on it: dvc exp run -S data.path=data/raw/tiny.txt\n"
    assert err.count("\n") == 1
    assert (
        run(monkeypatch, "fetch", "nothing")
        == "minigpt-cli: nothing: no such corpus; known are tiny"
    )


def test_a_terminal_shows_a_bar(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    fetch("tiny", tmp_path)
    assert "100.0/100.0 kB" in capsys.readouterr().err


def test_the_list_is_a_table(monkeypatch, capsys):
    assert run(monkeypatch, "fetch") == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines][:2] == [
        ["tinyshakespeare", "1.1", "MB"],
        ["names", "0.2", "MB"],
    ]
    assert all(
        line[head.index("LICENCE") - 1] == " " != line[head.index("LICENCE")] for line in lines
    )
    assert max(map(len, lines)) <= 120


def test_the_table_of_downloads_is_sound():
    ignored = (ROOT / "data/raw/.gitignore").read_text().splitlines()
    for name, corpus in CORPORA.items():
        assert name == corpus.name
        if isinstance(corpus, Download):
            assert corpus.url.startswith("https://")
            assert len(bytes.fromhex(corpus.sha256)) == 32
            assert f"/{name}.txt" in ignored


def test_the_python_docs_need_no_network(tmp_path):
    for _ in range(2):  # a second time replaces the first
        assert fetch("python-docs", tmp_path / "raw") == tmp_path / "raw/python-docs"
        files = list((tmp_path / "raw/python-docs").iterdir())
        assert len(files) > 50
        assert sum(file.stat().st_size for file in files) == pytest.approx(
            CORPORA["python-docs"].size, rel=0.2
        )
        assert names(tmp_path / "raw") == ["python-docs"]


def test_only_this_command_loads_what_it_needs():
    code = "import sys, minigpt.cli.app; print([name for name in ('requests', 'rich') if name in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert out == "[]\n"
