"""Paths of the project's files, and the fingerprint of a stage's code."""

import hashlib
import os
from pathlib import Path

from ruamel.yaml import YAML

VOCAB = Path("data/vocab.json")
TOKENS = Path("data/tokens")
DOCUMENTS = Path("data/documents.parquet")
MODEL = Path("models/minigpt.safetensors")
ONNX_MODEL = Path("models/minigpt.onnx")
REPORTS = Path("reports")
CHARACTERS = REPORTS / "characters.csv"
EVALUATION = REPORTS / "evaluation.json"
EVALUATION_DETAILS = REPORTS / "evaluation_details.json"
BASELINES = REPORTS / "baselines.csv"
MISTAKES = REPORTS / "mistakes.csv"
ACCURACY = REPORTS / "accuracy.csv"
SAMPLES = REPORTS / "samples.md"
EXPORT = REPORTS / "export.json"
MODEL_CARD = REPORTS / "model_card.md"


def root() -> Path:
    """Return the main repository, also from the temporary workspace of a queued DVC experiment."""
    if "DVC_ROOT" in os.environ:
        return Path(os.environ["DVC_ROOT"])
    here = Path.cwd()
    return next(
        (folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), here
    )


def code_sha256(stage: str) -> str:
    """Return the SHA-256 over the Python files that dvc.yaml lists as dependencies of `stage`."""
    deps = YAML(typ="safe", pure=True).load(Path("dvc.yaml"))["stages"][stage]["deps"]
    digest = hashlib.sha256()
    sources = [dep for dep in deps if dep.startswith(("minigpt", "pipeline"))]
    files = sorted(file for source in sources for file in _python_files(Path(source)))
    for path in files:
        digest.update(f"{path.as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _python_files(source: Path) -> list[Path]:
    return [source] if source.is_file() else list(source.rglob("*.py"))
