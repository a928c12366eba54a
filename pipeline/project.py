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
REPORTS = Path("reports")
CHARACTERS = REPORTS / "characters.csv"
TRAINING = REPORTS / "training.json"
EVALUATION = REPORTS / "evaluation.json"
EXPORT = REPORTS / "export.json"


def root() -> Path:
    """The main repository, also from the temporary workspace that DVC makes for a queued experiment."""
    if "DVC_ROOT" in os.environ:
        return Path(os.environ["DVC_ROOT"])
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), here)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def in_lock(stage: str) -> bool:
    """Whether dvc.lock says that the reports of `stage` here were made from the model that is here."""
    try:
        entry = YAML(typ="safe", pure=True).load(Path("dvc.lock"))["stages"][stage]
        files = {Path(item["path"]): item.get("md5") for item in [*entry["deps"], *entry["outs"]]}
        return all(
            hashlib.md5(path.read_bytes()).hexdigest() == md5
            for path, md5 in files.items()
            if path == MODEL or path.parent == REPORTS
        )
    except (OSError, KeyError):
        return False


def code_sha256(stage: str) -> str:
    """SHA-256 over the project's own Python files that `stage` depends on, as dvc.yaml lists them."""
    deps = YAML(typ="safe", pure=True).load(Path("dvc.yaml"))["stages"][stage]["deps"]
    digest = hashlib.sha256()
    for path in sorted(dep for dep in deps if dep.endswith(".py")):
        digest.update(f"{path}\0".encode() + Path(path).read_bytes() + b"\0")
    return digest.hexdigest()
