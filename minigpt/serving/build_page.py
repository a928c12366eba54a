"""Build of the page: a folder of static files that run a model in the browser.

    index.html, …     the page itself, from `page/static`
    onnxruntime.js    ONNX Runtime for browsers and its WebAssembly, and the fonts: from npm
    model.onnx        the model, unchanged
    training.json     curves and samples of its training, if they are known (`training_data`)

npm installs the packages of `page/package-lock.json` into a cache once; they are not part of
MiniGPT.
"""

import csv
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from minigpt.common.errors import UserError
from minigpt.common.files import atomic_folder, parse_json

SOURCE = Path(__file__).parent / "page"
PACKAGE_FILES = ("package.json", "package-lock.json", ".npmrc")
GENERATOR = b'<meta name="generator" content="minigpt-cli page">'  # in index.html
# files of the packages, by the name that the page uses
COPIED = {
    "onnxruntime.js": "onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
    "onnxruntime.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "literata.woff2": "@fontsource-variable/literata/files/literata-latin-wght-normal.woff2",
    "literata-italic.woff2": "@fontsource-variable/literata/files/literata-latin-wght-italic.woff2",
    "inter.woff2": "@fontsource-variable/inter/files/inter-latin-wght-normal.woff2",
}
PACKAGES = ("onnxruntime-web", "@fontsource-variable/literata", "@fontsource-variable/inter")


def build_page(out: Path, model: Path, training: dict[str, Any] | None = None) -> None:
    """Write the page of the ONNX file `model` to the folder `out`, replacing an earlier page.

    `training` is shown in the view of that name.

    Raises:
        UserError: `out` holds something else, or npm is missing or fails.
    """
    if os.path.lexists(out) and not _may_replace(out):
        raise UserError(f"{out}: exists and is not a page; name a new folder")
    packages = install_packages()
    with atomic_folder(out) as folder:
        for file in (SOURCE / "static").iterdir():
            shutil.copy(file, folder)
        for name, package_file in COPIED.items():
            shutil.copy(packages / package_file, folder / name)
        (folder / "licenses.txt").write_text(_licenses(packages), "utf-8")
        shutil.copy(model, folder / "model.onnx")
        (folder / "training.json").write_text(json.dumps(training), "utf-8")


def _may_replace(out: Path) -> bool:
    """Return whether `out` is an empty folder or a page."""
    if not out.is_dir() or out.is_symlink():
        return False
    return not any(out.iterdir()) or is_page(out)


def is_page(folder: Path) -> bool:
    """Return whether `folder` holds a page that `build_page` wrote."""
    with suppress(OSError):
        return GENERATOR in (folder / "index.html").read_bytes()
    return False


def install_packages() -> Path:
    """Return the folder `node_modules` with the packages of the lock file.

    They are installed unless an earlier call did.

    Raises:
        UserError: npm is missing or fails.
    """
    lock = (SOURCE / "package-lock.json").read_bytes()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = base / "minigpt" / f"npm-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not cache.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise UserError("npm: not found; install Node.js, which contains it")
        with atomic_folder(cache) as folder:
            for name in PACKAGE_FILES:
                shutil.copy(SOURCE / name, folder)
            command = [npm, "ci", "--ignore-scripts"]
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if result.returncode:
                lines = [*filter(None, result.stderr.splitlines()), "no message"]
                raise UserError(f"npm ci: {lines[0]}; it needs access to a registry of packages")
    return cache / "node_modules"


def _licenses(packages: Path) -> str:
    """Return the licenses of what the page contains from npm."""
    parts = []
    for name in PACKAGES:
        about = json.loads((packages / name / "package.json").read_bytes())
        parts.append(f"{name} {about['version']}: {about['license']}\n")
        with suppress(FileNotFoundError):
            parts.append((packages / name / "LICENSE").read_text("utf-8"))
    return "\n".join(parts)


def training_data(project: Path, sha256: str) -> dict[str, Any] | None:
    """Return curves, baselines and samples of the training that made an ONNX file, or None.

    They come from the reports of the project, or from the record of a tracked run, whichever names
    the file's `sha256`; samples are only in records.
    """
    folders = [folder for folder in _report_folders(project) if sha256 == _exported(folder)]
    if not folders:
        return None
    reports = folders[0]
    data: dict[str, Any] = {
        "training": _columns(reports / "training.csv"),
        "validation": _columns(reports / "validation.csv"),
        "evaluation": {},
        "samples": [],
    }
    for folder in folders:
        with suppress(OSError, ValueError, KeyError, TypeError):
            data["evaluation"] |= parse_json((folder / "evaluation.json").read_bytes())
        if losses := _baselines(folder / "baselines.csv"):
            data["evaluation"]["baseline_loss"] = losses
        with suppress(OSError, ValueError, KeyError, TypeError):
            data["samples"] = parse_json((folder.parent / "samples.json").read_bytes())["data"]
    return data


def _report_folders(project: Path) -> Iterator[Path]:
    yield project / "reports"
    yield from sorted((project / ".minigpt/runs").glob("*/artifacts/reports"), reverse=True)


def _exported(reports: Path) -> str:
    """Return the digest of the ONNX file in a report of the export; empty if there is none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(parse_json((reports / "export.json").read_bytes())["sha256"])
    return ""


def _baselines(file: Path) -> dict[str, float]:
    """Return the losses of the baselines by name; none if the file is missing or damaged."""
    with suppress(OSError, ValueError, KeyError), file.open(encoding="utf-8", newline="") as lines:
        return {row["model"]: float(row["loss"]) for row in csv.DictReader(lines)}
    return {}


def _columns(file: Path) -> dict[str, list[float]]:
    """Return the columns of a CSV file of numbers; none if it is missing or damaged."""
    with suppress(OSError, ValueError):
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}
    return {}
