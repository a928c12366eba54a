"""Runs stages as `python -m` does, in children of a process that has imported their packages.

The imports take several times as long as a stage of a small project.
"""

import atexit
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

PACKAGES = (
    *("matplotlib.pyplot", "mlflow.onnx", "onnx", "onnxruntime"),
    *("pandas", "pyarrow.parquet", "torch"),
)
SECONDS = 120  # after which a stage hangs


class StageServer:
    """A process that runs stages; `env` is the environment of all of them."""

    def __init__(self, cwd: Path, env: dict[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self._close)

    def _close(self) -> None:
        with self._process:  # closes its stdin, which ends it
            pass

    def run(self, folder: Path, module: str, **env: str) -> tuple[int, str]:
        """Run `module` in `folder`; return its exit code and its output."""
        output = folder.with_suffix(".output")
        request = {"folder": str(folder), "module": module, "output": str(output), "env": env}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        return os.waitstatus_to_exitcode(status), output.read_text()


def serve() -> None:
    for package in PACKAGES:
        importlib.import_module(package)
    for line in sys.stdin:
        request = json.loads(line)
        if (child := os.fork()) == 0:
            os._exit(become(**request))  # threads of the parent are missing at a regular exit
        print(wait(child), flush=True)


def wait(child: int) -> int:
    """Return the exit status of a child, which is killed if it hangs."""
    deadline = time.monotonic() + SECONDS
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)
    return ended[1]


def become(folder: str, module: str, output: str, env: dict[str, str]) -> int:
    """Run `module` in this process and return its exit code."""
    os.setsid()
    os.environ.update(env)
    for descriptor, path in ((0, os.devnull), (1, output), (2, output)):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, flags | os.O_APPEND), descriptor)
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.argv = [module]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, str):
            return int(end.code or 0)
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve()
