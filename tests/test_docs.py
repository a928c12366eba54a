"""The commands, examples, links and trees in the documents are correct."""

import doctest
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, free_port
from nbclient import NotebookClient

from pipeline.tools.ui import HOST

README = (ROOT / "README.md").read_text()
# commands of the README that CI or another test runs
ELSEWHERE = {
    "git clone <this repository> minigpt && cd minigpt": "CI starts from a clone",
    "source .venv/bin/activate": "CI and the tests put .venv/bin first on PATH",
    "make ui": "test_make_ui_shows_the_charts",
}
# what make calls, without a new .venv
PROGRAMS = {
    "make repro": "python -m pipeline.tools.baseline",
    "make back": "python -m pipeline.tools.back",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_readme_is_short():
    assert README.count("\n") < 150


def test_readme_starts_with_generated_text():
    assert README.index("```text") < README.index("## ")


@pytest.mark.slow
def test_commands_of_readme_work(project):
    # in one project, in the order of the README
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [line.split("#")[0].strip() for line in lines]
    assert len(commands) > 9
    for command in commands:
        if command not in ELSEWHERE:
            project.run("bash", "-c", PROGRAMS.get(command, command))


def test_commands_in_readme_table_exist(project):
    help_text = project.run("make", "help") + project.run("minigpt-cli", "--help")
    for command in re.findall(r"`(make|minigpt-cli) ([a-z-]+)", README):
        assert re.search(rf"^ *{command[1]} ", help_text, re.MULTILINE), command
    for line in project.run("make", "help").splitlines():
        assert line.split()[0] in (ROOT / "Makefile").read_text()


def test_python_of_readme_runs(reproduced):
    (snippet,) = blocks("python")
    assert reproduced.run(sys.executable, "-c", snippet)


def test_examples_of_guide_are_correct(monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testfile(
        str(ROOT / "docs/guide.md"), module_relative=False, optionflags=flags
    )
    assert tried > 10
    assert failed == 0


def test_documented_help_is_current():
    command = [
        sys.executable,
        "-m",
        "typer",
        "minigpt.cli.app",
        "utils",
        "docs",
        "--name",
        "minigpt-cli",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ROOT / "docs/cli.md").read_text().strip() == result.stdout.strip()


def test_links_resolve():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_pictures_suit_the_documents():
    shown = []
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for text, target in re.findall(r"!\[([^]]*)\]\(([^)]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert len(text) > 20, f"{document.name}: {target} needs a longer description"
                shown.append((document.parent / target).resolve())
    pictures = list((ROOT / "docs/pictures").iterdir())
    assert len(pictures) == 5
    assert set(pictures) <= set(shown)
    assert all(picture.stat().st_size < 60_000 for picture in pictures)


@pytest.mark.slow
def test_notebook_trains_a_model_that_memorizes_its_text():
    notebook = nbformat.read(ROOT / "examples/tour.ipynb", as_version=4)
    folder = {"metadata": {"path": str(ROOT / "examples")}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=folder).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "The quick brown fox jumps over the lazy dog." in text.split("step 300")[1]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4


def test_tree_lists_every_module():
    document = (ROOT / "docs/architecture.md").read_text()
    listed, parents = [], {-2: ""}  # parents: indentation → folder
    for indentation, name in re.findall(r"^((?:  )*)(\w+(?:/|\.py))", document, re.MULTILINE):
        path = parents[len(indentation) - 2] + name
        parents[len(indentation)] = path
        listed.append(path)
    modules = [
        file.relative_to(ROOT).as_posix()
        for package in ("minigpt", "pipeline")
        for file in (ROOT / package).rglob("*.py")
        if file.name != "__init__.py"
    ]
    assert sorted(path for path in listed if path.endswith(".py")) == sorted(modules)


def test_files_named_in_readme_exist():
    files = {file.name for folder in ("minigpt", "pipeline") for file in (ROOT / folder).rglob("*")}
    assert set(re.findall(r"\w+\.py\b", README)) <= files


def make(project, *targets: str, **env: str):
    """Start make with the environment of the tests instead of a new .venv."""
    (project.root / ".venv").symlink_to(Path(sys.prefix))
    return project.start("make", "--assume-old=.venv/.ready", *targets, **env)


def test_make_repro_shows_results(project):
    process = make(project, "repro")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    for words in ("validation loss", "models/minigpt.onnx", "try next:"):
        assert words in out


def test_make_ui_shows_the_charts(project):
    port = free_port()
    process = make(project, "ui", PORT=port)
    try:
        assert process.stdout is not None
        lines = (line for line in process.stdout if line.startswith("http"))
        url = next(lines).strip()
        assert url.startswith(f"http://{HOST}:{port}/#/experiments/1/runs?")
        assert "compareRunsMode=CHART" in url
        for _ in range(120):
            try:
                # not every resolver knows a name that browsers do
                address = url.replace(HOST, "127.0.0.1")
                page = urllib.request.urlopen(address, timeout=5).read().decode()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail("no page within a minute")
        assert "<title>MLflow</title>" in page
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)


def test_mlflow_without_options_finds_runs(reproduced):
    code = "import mlflow; print(len(mlflow.search_runs(experiment_names=['minigpt'])), 'run')"
    assert "1 run" in reproduced.run(sys.executable, "-W", "ignore", "-c", code)
