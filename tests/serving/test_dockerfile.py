"""The lines of the Dockerfile, executed without Docker: the installation, the server, its check."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, free_port, wait_for
from local_server import export_small

LINES = (ROOT / "Dockerfile").read_text().splitlines()
NOBODY = 65534


def argument(name: str) -> str:
    """Return what follows the last instruction `name`."""
    return next(line for line in reversed(LINES) if line.startswith(name)).partition(" ")[2]


def interpreter(user: dict[str, Any]) -> str:
    """Return a Python that `user` can run, unlike one in the home of another user."""
    code = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    for path in (getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            if subprocess.run([path, "-c", code], **user).returncode == 0:
                return path
    pytest.skip("there is no Python that an unprivileged user can run")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that other users can read, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.slow
def test_the_image_serves_a_model_without_privileges(folder, tokenizer):
    build, environment, models = folder / "build", folder / "environment", folder / "models"
    build.mkdir()
    models.mkdir()
    export_small(models, tokenizer)
    for line in LINES:
        if line.startswith("COPY ") and not line.startswith("COPY --from"):
            *sources, target = shlex.split(line)[1:]
            for source in sources:
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, build / target)
    assert "USER nobody" in LINES
    nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    install = argument("RUN").replace("/opt/minigpt", str(environment))
    install = install.replace("python -m venv", f"{interpreter(nobody)} -m venv")
    subprocess.run(["bash", "-c", install], cwd=build, check=True, capture_output=True)
    installed = subprocess.run(
        [environment / "bin/pip", "list", "--format=json"], check=True, capture_output=True
    )
    packages = {package["name"] for package in json.loads(installed.stdout)}
    assert "onnxruntime" in packages
    assert not packages & {"torch", "mlflow", "pydantic", "onnx", "pandas"}

    port = free_port()
    command = argument("CMD").replace("/models", str(models)).replace("0.0.0.0", "127.0.0.1")
    settings = {"PATH": f"{environment}/bin:/usr/bin:/bin", "MINIGPT_API_KEY": "secret"}
    server = subprocess.Popen(
        [*json.loads(command), "--port", port], cwd=folder, env=settings, **nobody
    )
    try:
        (check,) = re.findall(r"HEALTHCHECK .* CMD (.*)", "\n".join(LINES))
        health = [part.replace("8000", port) for part in json.loads(check)]

        def healthy() -> bool:
            result = subprocess.run(health, env=settings, capture_output=True, **nobody)
            return result.returncode == 0

        wait_for(healthy)
    finally:
        server.terminate()
    assert server.wait(timeout=60) == 0
