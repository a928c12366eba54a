"""`minigpt-cli serve` as a process, and where it may listen."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from local_server import export_small
from typer.testing import CliRunner

from minigpt.cli.app import app
from minigpt.common.errors import UserError
from minigpt.serving.server import bind

COMMAND = [sys.executable, "-m", "minigpt.cli", "serve", "--port", "0", "--model"]


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory) -> Path:
    return export_small(tmp_path_factory.mktemp("served"), tokenizer)


def start(*command: str, **env: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server; return its process and its address."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )
    line = process.stdout.readline()
    assert line.startswith("serving minigpt at http://"), line + process.stderr.read()
    return process, line.split()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_requests_with_exit_code_0(model, number):
    process, address = start(*COMMAND, str(model))
    body: dict[str, Any] = {"max_tokens": 1000, "ignore_eos": True, "stream": True}
    try:
        with httpx.stream("POST", f"{address}/completions", json=body, timeout=60) as response:
            lines = (line for line in response.iter_lines() if line)
            texts = [next(lines)]
            process.send_signal(number)
            texts += lines
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert texts.pop() == "data: [DONE]"
    choices = [json.loads(text.removeprefix("data: "))["choices"][0] for text in texts]
    assert choices[-1]["finish_reason"] == "length"
    assert sum(len(choice["text"]) for choice in choices) == 1000
    assert (process.returncode, out, err) == (0, "", "")


def test_the_key_comes_from_the_environment(model):
    process, address = start(*COMMAND, str(model), MINIGPT_API_KEY="secret")
    try:
        assert httpx.get(f"{address}/models").status_code == 401
        authorized = {"Authorization": "Bearer secret"}
        (described,) = httpx.get(f"{address}/models", headers=authorized).json()["data"]
        assert len(described["system_fingerprint"]) == 64
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_others_are_not_served_without_a_key():
    with pytest.raises(UserError, match=r"host: others can reach .*; set an API key"):
        bind("0.0.0.0", 0, protected=False)
    with bind("localhost", 0, protected=False) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"host: cannot listen at localhost, port {port}"):
            bind("localhost", port, protected=False)


@pytest.mark.parametrize("host", ["a..b", "192.0.2.1"])
def test_a_host_of_another_machine_is_named(host):
    with pytest.raises(UserError, match=rf"^host: .*{host}.*; use another --host$"):
        bind(host, 0, protected=True)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("models/tiny.int8.onnx", "tiny.int8"),
        ("models:/a.b@champion", "a.b"),
        ("models:/minigpt/3", "minigpt"),
        ("runs:/0123/tiny", "tiny"),
    ],
)
def test_the_model_has_the_name_of_its_file_or_in_the_registry(model, name, monkeypatch):
    backend = SimpleNamespace(sha256="")
    monkeypatch.setattr("minigpt.cli.serve.load_backend", lambda *args: backend)
    monkeypatch.setattr("minigpt.serving.server.serve", lambda *args: None)
    assert (
        CliRunner()
        .invoke(app, ["serve", "--port", "0", "--model", model])
        .stdout.startswith(f"serving {name} at ")
    )


def test_wrong_options_are_named(model, tmp_path):
    for options, problem in {
        ("--page", str(tmp_path)): f"{tmp_path}: not a page; build one with `minigpt-cli page ",
        ("--api-key", "two words"): "api-key: must be printable ASCII",
        ("--api-key", "clé"): "api-key: must be printable ASCII",
        ("--api-key", ""): "api-key: must be printable ASCII",
    }.items():
        result = CliRunner().invoke(app, ["serve", "--model", str(model), *options])
        assert isinstance(result.exception, UserError)
        assert str(result.exception).startswith(problem)


def test_a_missing_package_is_named(model):
    code = (
        "import sys; sys.modules['uvicorn'] = None; from minigpt.cli.app import main\n"
        f"sys.argv = ['minigpt-cli', 'serve', '-m', {str(model)!r}]; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "uvicorn: package not installed; run `pip install '.[serve]'`" in result.stderr


def test_the_server_loads_no_heavy_package():
    code = "import minigpt.serving.server, sys; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert not set(loaded.split()) & {"torch", "pandas", "mlflow", "onnx", "pydantic", "rich"}
    assert "uvicorn" in loaded.split()
