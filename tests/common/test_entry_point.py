import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt.common.entry_point import run_program
from minigpt.common.errors import UserError


def message_of(error: BaseException) -> str | int | None:
    """Return what `sys.exit` gets when a program raises `error`."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run_program(main, "name: ", "standard output")
    return end.value.code


@pytest.mark.parametrize("number", sorted(errno.errorcode.keys() - {errno.EPIPE}))
def test_any_error_of_the_system_is_one_line(number):
    reason = os.strerror(number)
    advice = "make room" if number in (errno.ENOSPC, errno.EDQUOT) else "fix it"
    message = message_of(OSError(number, "of a library\nin lines", "a\x1b[2J.txt"))
    assert message == f"name: a\\x1b[2J.txt: cannot be used ({reason}); {advice} and try again"


def test_an_error_without_a_file_is_of_standard_output():
    assert str(message_of(OSError(errno.EIO, ""))).startswith("name: standard output: cannot be")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("a.txt: not found"), "name: a.txt: not found"),
        (MemoryError(), "name: not enough memory; use smaller sizes, or free memory"),
        (
            MemoryError("8 TiB"),
            "name: not enough memory (8 TiB); use smaller sizes, or free memory",
        ),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_the_user_can_fix_has_no_traceback(error, message):
    assert message_of(error) == message


@pytest.mark.parametrize("error", [TypeError, RecursionError, OSError, EOFError])
def test_a_bug_keeps_its_traceback(error):
    def main() -> None:
        raise error("a bug")

    with pytest.raises(error, match="a bug"):
        run_program(main)


@pytest.mark.parametrize("module", ["minigpt.cli", "pipeline.prepare"])
def test_ctrl_c_during_imports_has_no_traceback(tmp_path: Path, module):
    # a package that is imported late, and takes forever
    (tmp_path / "numpy.py").write_text("print(flush=True)\nimport time; time.sleep(60)\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, "-m", module, "score", "-"],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 130
