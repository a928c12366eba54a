"""Progress bars, and the log lines where there is no terminal."""

import logging

import pytest

from minigpt.training.train import Progress
from pipeline.common.progress import TrainingProgress


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_a_log_file_gets_lines_instead_of_a_bar(monkeypatch, caplog, capsys, variable):
    monkeypatch.setenv(variable, "1")
    with caplog.at_level(logging.INFO), TrainingProgress(30, Progress()) as bar:
        bar({"step": 15.0, "tokens": 480.0, "val/loss": 3.5})
    assert "step 15/30  val/loss 3.5000" in caplog.text
    assert capsys.readouterr().err == ""
