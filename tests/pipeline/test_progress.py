"""Progress bars, and the log lines where there is no terminal."""

import io
import logging
import re
import sys

import pytest
from conftest import data_config

from minigpt.corpus.corpus import Corpus
from minigpt.training.train import Progress
from pipeline.common.progress import TrainingProgress, reading_progress
from pipeline.common.stage import StderrHandler


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_a_log_file_gets_lines_instead_of_a_bar(monkeypatch, caplog, capsys, variable):
    monkeypatch.setenv(variable, "1")
    with caplog.at_level(logging.INFO), TrainingProgress(30, Progress()) as bar:
        bar({"step": 15.0, "tokens": 480.0, "val/loss": 3.5})
    assert "step 15/30  val/loss 3.5000" in caplog.text
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def replace_stderr(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr  # not from a fixture: pytest replaces the stream after the set-up


def test_other_lines_are_printed_above_the_bar(monkeypatch, caplog):
    terminal = replace_stderr(monkeypatch)
    with TrainingProgress(30, Progress()) as bar:
        bar({"step": 15.0, "tokens": 480.0, "val/loss": 3.5})
        bar.write("step 15: a text")
        StderrHandler().handle(logging.makeLogRecord({"msg": "stopped at step 15"}))
    for line in ("step 15: a text", "stopped at step 15"):
        # the line of the bar is erased first, and drawn again below
        assert re.search(rf"\x1b\[2K{line}\r?\n.*step 15/30", terminal.getvalue(), re.DOTALL)
    assert terminal.getvalue().endswith("\n\x1b[?25h")
    assert not caplog.text


def test_a_reading_bar_ends_at_its_total(monkeypatch, tmp_path):
    terminal = replace_stderr(monkeypatch)
    (tmp_path / "a.txt").write_text("a tale\n" * 300)
    corpus = Corpus(data_config(tmp_path / "a.txt"))
    with reading_progress("prepare", corpus.reader, corpus) as documents:
        list(documents)
    assert "2.1/2.1 kB" in terminal.getvalue().splitlines()[-2]
