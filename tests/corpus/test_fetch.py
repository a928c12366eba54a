"""Pinned downloads from a local server that simulates failures."""

import hashlib
import os
import random
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pooch
import pytest
from conftest import ROOT

from minigpt.cli.app import main
from minigpt.common.errors import UserError
from minigpt.corpus import fetch as module
from minigpt.corpus.fetch import CORPORA, NamedCorpus, fetch

# pooch leaves the connection of a failed download open until garbage collection
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

BODY = random.Random(0).randbytes(100_000)


class Server(ThreadingHTTPServer):
    """HTTP server that responds with `respond(request)` and counts the requests."""

    daemon_threads = False  # server_close() joins the threads, so no socket stays open

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Request)
        self.url = f"http://127.0.0.1:{self.server_port}/text.txt"
        self.requests = 0
        self.closing = threading.Event()
        self.respond = Request.send

    def handle_error(self, request, client_address):
        """Ignore clients that hang up."""


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests += 1
        self.server.respond(self)

    def log_message(self, *args):
        pass

    def send(self, body: bytes = BODY, status: int = 200, **headers: object) -> None:
        """Send a response; without Content_Length (None) the body ends with the connection."""
        self.send_response(status)
        # without `Connection: close`, a client would reuse a connection that is closing
        for name, value in {"Content_Length": len(body), "Connection": "close", **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

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
def tiny(server, monkeypatch) -> NamedCorpus:
    """Return the corpus on the server, the only one in the table."""
    digest = hashlib.sha256(BODY).hexdigest()
    corpus = NamedCorpus("tiny", "random bytes", "none", len(BODY), server.url, digest)
    monkeypatch.setattr(module, "CORPORA", {"tiny": corpus})
    return corpus


def names(folder) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def failure(folder) -> str:
    """Return the message of a fetch that must fail."""
    with pytest.raises(UserError) as error:
        fetch("tiny", folder)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_download_is_complete(tiny, tmp_path, capsys):
    folder = tmp_path / "data/raw"
    assert fetch("tiny", folder) == folder / "tiny.txt"
    assert (folder / "tiny.txt").read_bytes() == BODY
    assert (folder / "tiny.txt").stat().st_mode & 0o777 == 0o644
    assert names(folder) == ["tiny.txt"]
    assert capsys.readouterr() == ("", "")


def test_second_fetch_makes_no_request(tiny, server, tmp_path):
    for _ in range(2):
        assert fetch("tiny", tmp_path).read_bytes() == BODY
    assert server.requests == 1


def test_wrong_file_stays_until_its_replacement_is_complete(tiny, server, tmp_path):
    target = tmp_path / "tiny.txt"
    target.write_bytes(b"\0" * len(BODY))
    server.respond = lambda request: request.send(b"gone", 500)
    failure(tmp_path)
    assert target.read_bytes() == b"\0" * len(BODY)
    server.respond = Request.send
    fetch("tiny", tmp_path)
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("body", [b"\0" * len(BODY), BODY[:-1], BODY * 2, b""])
@pytest.mark.parametrize("length", ["announced", "unknown"])
def test_wrong_content_is_not_kept(tiny, server, tmp_path, body, length):
    headers = {} if length == "announced" else {"Content_Length": None}
    server.respond = lambda request: request.send(body, **headers)
    assert "its SHA-256 is not" in failure(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("sent", [0, 70_000])
def test_closed_connection_is_reported(tiny, server, tmp_path, sent):
    server.respond = lambda request: request.send(BODY[:sent], Content_Length=len(BODY))
    expected = f"{server.url}: the connection was closed; try again later"
    assert failure(tmp_path) == expected
    assert names(tmp_path) == []


@pytest.mark.parametrize("sent", [0, 70_000])
def test_stalled_download_times_out(tiny, server, tmp_path, monkeypatch, sent):
    monkeypatch.setattr(module, "TIMEOUT", 0.3)
    server.respond = lambda request: request.stall(sent)
    assert failure(tmp_path).startswith(f"{server.url}: no data received for 0.3 s; ")
    server.respond = lambda request: server.closing.wait(60)
    assert failure(tmp_path).startswith(f"{server.url}: no data received for 0.3 s; ")
    assert names(tmp_path) == []


def test_http_error_is_reported(tiny, server, tmp_path):
    server.respond = lambda request: request.send(b"not here", 404)
    expected = f"{server.url}: the server responded 404 Not Found; try again later"
    assert failure(tmp_path) == expected


def test_redirect_is_followed(tiny, server, tmp_path):
    def respond(request):
        if request.path == "/text.txt":
            request.send(b"", 302, Location="/moved.txt")
        else:
            request.send()

    server.respond = respond
    assert fetch("tiny", tmp_path).read_bytes() == BODY


def test_endless_redirects_are_reported(tiny, server, tmp_path):
    server.respond = lambda request: request.send(b"", 302, Location="/text.txt")
    assert failure(tmp_path) == f"{server.url}: Exceeded 30 redirects.; try again later"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/text.txt", "Connection refused"),
        ("http://nowhere.invalid/text.txt", "Name or service not known"),
    ],
)
def test_unreachable_server_is_reported(tiny, tmp_path, monkeypatch, url, reason):
    def resolve(*args):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    if "nowhere" in url:
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setitem(module.CORPORA, "tiny", replace(tiny, url=url))
    assert failure(tmp_path) == f"{url}: {reason}; try again later"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a Linux device")
def test_full_disk_is_reported(tiny, tmp_path, monkeypatch):
    def write_to_full_disk(self, url, output_file, pooch):
        with open("/dev/full", "wb") as file:
            file.write(BODY)

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", write_to_full_disk)
    expected = f"{tmp_path}: No space left on device; fix it and run the command again"
    assert failure(tmp_path) == expected
    assert names(tmp_path) == []


def test_file_in_place_of_the_folder_is_reported(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    assert failure(tmp_path / "file").startswith(f"{tmp_path / 'file'}: File exists; ")


def test_concurrent_downloads_succeed(tiny, server, tmp_path):
    both = threading.Barrier(2)

    def respond(request):
        both.wait(30)
        request.send()

    server.respond = respond
    threads = [threading.Thread(target=fetch, args=("tiny", tmp_path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "tiny.txt").read_bytes() == BODY
    assert names(tmp_path) == ["tiny.txt"]


def run(monkeypatch, *args: str) -> int | str | None:
    """Run minigpt-cli in this process and return its exit code or message."""
    monkeypatch.setattr(sys, "argv", ["minigpt-cli", *args])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_command_prints_how_to_continue(tiny, server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "fetch", "tiny") == 0
    out, err = capsys.readouterr()
    assert out == "data/raw/tiny.txt\ntrain on it: dvc exp run -S data.path=data/raw/tiny.txt\n"
    assert err == ""


def test_unknown_name_error_lists_the_known_names(tiny, monkeypatch):
    expected = "minigpt-cli: nothing: no such corpus; choose from tiny"
    assert run(monkeypatch, "fetch", "nothing") == expected


def test_terminal_shows_a_progress_bar(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch("tiny", tmp_path)
    assert "100%" in capsys.readouterr().err


def test_listing_is_an_aligned_table(monkeypatch, capsys):
    assert run(monkeypatch, "fetch") == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines][:2] == [
        ["tinyshakespeare", "1.1", "MB"],
        ["names", "0.2", "MB"],
    ]
    assert all(
        line[head.index("LICENSE") - 1] == " " != line[head.index("LICENSE")] for line in lines
    )
    assert max(map(len, lines)) <= 120


def test_every_download_is_pinned():
    ignored = (ROOT / "data/raw/.gitignore").read_text().splitlines()
    for name, corpus in CORPORA.items():
        assert name == corpus.name
        if corpus.url:
            assert corpus.url.startswith("https://")
            assert len(bytes.fromhex(corpus.sha256)) == 32
            assert f"/{name}.txt" in ignored


def test_python_docs_need_no_network(tmp_path):
    for _ in range(2):  # the second fetch replaces the first
        assert fetch("python-docs", tmp_path / "raw") == tmp_path / "raw/python-docs"
        files = list((tmp_path / "raw/python-docs").iterdir())
        assert len(files) > 50
        assert sum(file.stat().st_size for file in files) == pytest.approx(
            CORPORA["python-docs"].size, rel=0.2
        )
        assert names(tmp_path / "raw") == ["python-docs"]


@pytest.mark.parametrize("commands", ["pass", "minigpt.cli.app.fetch(None)"])
def test_only_a_download_loads_its_packages(commands):
    code = f"import sys, minigpt.cli.app; {commands};"
    code += "print([name for name in ('requests', 'pooch', 'tqdm') if name in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert out.splitlines()[-1] == "[]"
