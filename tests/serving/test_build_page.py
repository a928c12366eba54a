"""The builder of the page: what it refuses, what it copies, and which training it shows."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minigpt.cli.app import app
from minigpt.common.errors import UserError
from minigpt.serving import build_page as builder
from minigpt.serving.build_page import build_page, training_data

SHA256 = "ab" * 32


@pytest.fixture
def packages(tmp_path, monkeypatch) -> Path:
    """Return a stand-in for the packages that npm installs."""
    folder = tmp_path / "node_modules"
    for file in builder.COPIED.values():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(file)
    for name in builder.PACKAGES:
        about = {"version": "1.0", "license": "MIT"}
        (folder / name / "package.json").write_text(json.dumps(about))
    monkeypatch.setattr(builder, "install_packages", lambda: folder)
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    (tmp_path / "some.onnx").write_bytes(b"model")
    return tmp_path / "some.onnx"


def test_page_contains_model_runtime_and_licenses(packages, model, tmp_path):
    out = tmp_path / "page"
    build_page(out, model, {"samples": []})
    assert (out / "model.onnx").read_bytes() == b"model"
    assert json.loads((out / "training.json").read_text()) == {"samples": []}
    assert builder.is_page(out)
    assert "onnxruntime-web 1.0: MIT" in (out / "licenses.txt").read_text()
    # every file that the page names is there, and it names no other origin
    named = re.compile(r'(?:from |href=|src=|url\(|URL\()"?\.?/?([\w-]+\.(?:js|css|woff2|wasm))')
    for file in (builder.SOURCE / "static").iterdir():
        for name in named.findall(file.read_text()):
            assert (out / name).exists(), f"{file.name}: {name}"
        assert not re.findall("https?://(?!localhost|www.w3.org)", file.read_text())


def test_a_page_replaces_an_earlier_page(packages, model, tmp_path):
    out = tmp_path / "page"
    build_page(out, model)
    (out / "old.js").touch()
    build_page(out, model)
    assert not (out / "old.js").exists()


def test_other_folders_are_not_replaced(packages, model, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.html").write_text("<title>My thesis</title>")
    with pytest.raises(UserError, match=r"docs: exists and is not a page; name a new folder"):
        build_page(tmp_path / "docs", model)
    (tmp_path / "docs/index.html").write_bytes("<title>Thèse</title>".encode("latin-1"))
    with pytest.raises(UserError, match=r"docs: exists and is not a page; name a new folder"):
        build_page(tmp_path / "docs", model)
    with pytest.raises(UserError, match=r"some\.onnx: exists and is not a page"):
        build_page(model, model)


def test_missing_npm_is_one_line(model, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"^npm: not found; install Node\.js, which contains it$"):
        build_page(tmp_path / "page", model)
    assert not (tmp_path / "page").exists()


def test_failing_npm_is_one_line(model, tmp_path, monkeypatch):
    (tmp_path / "npm").write_text("#!/bin/sh\necho 'npm error network down' >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"^npm ci: npm error network down; .*"):
        build_page(tmp_path / "page", model)
    assert not list((tmp_path / "cache/minigpt").iterdir())  # nothing that looks complete


def test_training_data_is_that_of_the_model(tmp_path):
    def reports(folder: Path, sha256: str, loss: float) -> None:
        folder.mkdir(parents=True)
        (folder / "export.json").write_text(json.dumps({"sha256": sha256}))
        (folder / "training.csv").write_text(f"step,train/loss\n20,{loss}\n")
        (folder / "evaluation.json").write_text('{"loss": 2.0}')
        (folder / "baselines.csv").write_text("model,loss\nunigram,3.0\n")

    assert training_data(tmp_path, SHA256) is None
    reports(tmp_path / "reports", "another", 9.0)
    assert training_data(tmp_path, SHA256) is None
    record = tmp_path / ".minigpt/runs/1/artifacts"
    reports(record / "reports", SHA256, 2.5)
    (record / "samples.json").write_text('{"columns": ["step", "text"], "data": [[20, "Th"]]}')
    found = training_data(tmp_path, SHA256)
    assert found == {
        "training": {"step": [20.0], "train/loss": [2.5]},
        "validation": {},
        "evaluation": {"loss": 2.0, "baseline_loss": {"unigram": 3.0}},
        "samples": [[20, "Th"]],
    }
    (record / "samples.json").write_text("{")  # damaged
    assert training_data(tmp_path, SHA256)["samples"] == []


def test_command_needs_an_exported_model(tmp_path):
    model = tmp_path / "missing.onnx"
    result = CliRunner().invoke(app, ["page", str(tmp_path / "page"), "--model", str(model)])
    assert isinstance(result.exception, UserError)
    assert "missing.onnx: no such model" in str(result.exception)
