"""Let single system calls of other processes fail, by the library fail_calls.c."""

import ctypes
import mmap
import os
import shutil
import subprocess
from pathlib import Path

import pytest


class Control(ctypes.Structure):
    """The memory that is shared with fail_calls.c."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("count", "number", "error", "persistent")),
        ("call", ctypes.c_char * 1024),
    )


class FailingCalls:
    """Processes with the environment `env` count their calls that write below a folder.

    Args:
        folder: Folder for the compiled library.
        below: Start of the paths that count, in `folder`.
    """

    def __init__(self, folder: Path, below: str):
        if not shutil.which("gcc") and "CI" not in os.environ:
            pytest.skip("needs gcc: apt install gcc libc6-dev")
        library, shared = folder / "fail_calls.so", folder / "control"
        source = Path(__file__).with_name("fail_calls.c")
        command = ["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(source)]
        subprocess.run([*command, "-ldl"], check=True)
        shared.write_bytes(bytes(ctypes.sizeof(Control)))
        with shared.open("r+b") as file:
            self._control = Control.from_buffer(mmap.mmap(file.fileno(), 0))
        self.env = {
            "LD_PRELOAD": str(library),
            "FAULT_CONTROL": str(shared),
            "FAULT_FOLDER": f"{folder}/{below}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": "",
        }

    def fail(self, number: int, error: int = 0, persistent: bool = False) -> None:
        """Let call number `number` from now fail, and all later ones if `persistent`; 0: none."""
        self._control.number = 0
        self._control.count, self._control.call = 0, b""
        self._control.error, self._control.persistent = error, persistent
        self._control.number = number

    @property
    def count(self) -> int:
        return int(self._control.count)

    @property
    def failed_call(self) -> str:
        """The first call that failed and its path; empty if none did."""
        return bytes(self._control.call).decode()
