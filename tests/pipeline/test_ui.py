"""The pages of `make ui` in a real browser."""

import html
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import Project, free_port, is_up, server, wait_for
from mlflow import MlflowClient

from pipeline.tools.ui import HOST

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="needs a browser: apt install chromium"
)


@pytest.fixture(scope="module")
def page(with_experiments: Project, tmp_path_factory):
    """Return a function that returns the text of the page at a path of the UI."""
    # a copy: other tests expect a project without a champion
    project = with_experiments.copy(tmp_path_factory.mktemp("ui") / "project", tracked=True)
    for experiment in ("HEAD", "faster"):  # one of them is the champion in the end
        project.start(sys.executable, "-m", "pipeline.tools.promote", experiment).communicate()
    folder = tmp_path_factory.mktemp("browser")
    port = free_port()

    def visible(path: str) -> str:
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder}",
        ]
        command += ["--window-size=2600,2400", "--virtual-time-budget=60000", "--dump-dom"]
        url = f"http://{HOST}:{port}/{path}"
        dom = subprocess.run(
            [*command, url], capture_output=True, text=True, check=True, timeout=120
        ).stdout
        dom = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", dom, flags=re.DOTALL)
        return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", dom)).split())

    with server(project, sys.executable, "-m", "pipeline.tools.ui", PORT=port):
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}/health"))
        yield visible


def client(with_experiments: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{with_experiments.root}/mlruns/mlflow.db")


def test_the_charts_compare_the_runs(page):
    text = page(
        "#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey=minigpt"
    )
    for run in ("(restored)", "faster lr=1e-2", "apart lr=1e-2 seed=1"):
        assert run in text
    assert re.search(r"Loss \( ?3 ?\).*Evaluation \( ?2 ?\).*Training \( ?3 ?\)", text)
    assert text.index("val/loss") < text.index("train/loss") < text.index("val/bits_per_char")
    for axis in ("Step", "flops"):
        assert axis in text
    for uninvited in ("baseline_loss", "Model metrics", "Ask questions about your experiments"):
        assert uninvited not in text


def test_the_list_names_the_runs(page):
    text = page("#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=minigpt")
    for words in ("(restored)", "apart lr=1e-2 seed=1", " matching runs"):
        assert words in text
    for column in ("evaluation/loss", "evaluation/bits_per_char", "parameters", "Duration"):
        assert column in text


def test_the_models_page_shows_the_measured_models(page):
    text = page("#/experiments/1/models?workflowType=machine_learning")
    for words in ("faster_lr=1e-2", "tales-val", "evaluation/loss", "val/loss"):
        assert words in text


def test_a_run_shows_its_card(page, with_experiments):
    run = client(with_experiments).search_runs(["1"], "tags.dvc_experiment = 'faster'")[0]
    text = page(f"#/experiments/1/runs/{run.info.run_id}")
    for words in (
        "faster lr=1e-2",
        "A decoder-only transformer",
        "bits per character",
        "val/loss",
    ):
        assert words in text


def test_a_run_lists_its_files(page, with_experiments):
    run = client(with_experiments).search_runs(["1"], "tags.dvc_experiment = 'faster'")[0]
    text = page(f"#/experiments/1/runs/{run.info.run_id}/artifacts")
    for words in ("figures", "reports", "model_card.md", "samples.json"):
        assert words in text


def test_the_registry_shows_the_champion(page):
    assert "minigpt" in page("#/models")
    text = page("#/models/minigpt")
    assert "champion" in text
    assert "Version 1" in text
