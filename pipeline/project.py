"""Where things are in the project, and fingerprints of what is there."""

import hashlib
import os
from pathlib import Path

from ruamel.yaml import YAML

VOCAB = Path("data/vocab.json")
TOKENS = Path("data/tokens")
DOCUMENTS = Path("data/documents.parquet")
MODEL = Path("models/minigpt.safetensors")
ONNX_MODEL = Path("models/minigpt.onnx")
INT8_MODEL = Path("models/int8/minigpt.onnx")
REPORTS = Path("reports")
CHARACTERS = REPORTS / "characters.csv"
TRAINING = REPORTS / "training.json"
EVALUATION = REPORTS / "evaluation.json"
MISTAKES = REPORTS / "mistakes.csv"
EXPORT = REPORTS / "export.json"
MODEL_CARD = REPORTS / "model_card.md"


def root() -> Path:
    """The main repository, also from the temporary workspace that DVC makes for a queued experiment."""
    if "DVC_ROOT" in os.environ:
        return Path(os.environ["DVC_ROOT"])
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), here)


def file_digest(path: Path, algorithm: str) -> str:
    """Hexadecimal, by "sha256", or by "md5" as DVC names a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def code_sha256(stage: str) -> str:
    """SHA-256 over the project's own Python files that `stage` depends on, as dvc.yaml lists them."""
    deps = YAML(typ="safe", pure=True).load(Path("dvc.yaml"))["stages"][stage]["deps"]
    digest = hashlib.sha256()
    for path in sorted(dep for dep in deps if dep.endswith(".py")):
        digest.update(f"{path}\0".encode() + Path(path).read_bytes() + b"\0")
    return digest.hexdigest()
