"""A tracking server for tests, and a gate before it that fails on request."""

import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from conftest import Project, free_port, is_up, server, wait_for


class Gate(BaseHTTPRequestHandler):
    """Proxy of a tracking server that fails once requests have a path that contains `begins`.

    The first `spared` of these requests succeed.
    """

    protocol_version = "HTTP/1.1"
    target, trouble, begins, spared, matches = "", "none", "", 0, 0

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        cls = type(self)
        cls.matches += cls.begins in self.path
        trouble = cls.trouble if cls.matches > cls.spared else "none"
        if trouble == "away":
            self.close_connection = True
            return
        if trouble == "slow":
            time.sleep(0.2)
        status, content, kind = (
            (500, b"broken", "text/plain") if trouble == "500" else self._ask(body)
        )
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _ask(self, body):
        headers = {name: self.headers[name] for name in ("Content-Type",) if self.headers[name]}
        request = urllib.request.Request(
            self.target + self.path, body or None, headers, method=self.command
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read(), answer.headers["Content-Type"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), error.headers["Content-Type"] or "text/plain"

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815 (names that http.server wants)

    def log_message(self, *args):
        pass


@contextmanager
def tracker(project: Project, backend: str):
    """Run a `mlflow server` with the runs in `backend`; yield its address."""
    port = free_port()
    artifacts = project.root / "server-artifacts"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend),
        *("--host", "127.0.0.1", "--port", port, "--workers", "2"),
        *("--artifacts-destination", str(artifacts)),
    ]
    with server(project, *command, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"):
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}/health"))
        yield f"http://127.0.0.1:{port}"


@contextmanager
def open_gate(target: str) -> Iterator[type[Gate]]:
    """Run a gate before the server at `target`; its `trouble` can be set at any time."""
    gate = type("ThisGate", (Gate,), {"target": target})
    with ThreadingHTTPServer(("127.0.0.1", 0), gate) as httpd:
        gate.url = f"http://127.0.0.1:{httpd.server_port}"
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield gate
        httpd.shutdown()
