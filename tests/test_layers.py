"""The import rules of docs/architecture.md hold, and dvc.yaml agrees with the code."""

import ast
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import ROOT
from reached import PACKAGES, imports, module_files, reached, reached_packages
from ruamel.yaml import YAML

from minigpt.common.config import Params

DVC = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")
STAGES = {name: stage.get("do", stage) for name, stage in DVC["stages"].items()}
FILES = sorted(
    file.relative_to(ROOT) for package in PACKAGES for file in (ROOT / package).rglob("*.py")
)

# the packages of minigpt, lowest first; packages on one level do not import each other
LEVELS = [
    {"common"},
    {"tokenizer"},
    {"data"},
    {"model", "corpus"},
    {"generation", "training"},
    {"export", "evaluation", "interop"},
    {"serving"},
    {"cli"},
]


def level(file: Path) -> int:
    return next(height for height, names in enumerate(LEVELS) if file.parts[1] in names)


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] == "minigpt"], ids=str)
def test_minigpt_imports_go_one_way(file):
    names = imports(ROOT / file)
    if file == Path("minigpt/cli/mlflow_store.py"):  # which resolves models:/ and runs:/
        names = {name for name in names if not name.startswith("mlflow")}
    assert not [name for name in names if name.split(".")[0] in ("mlflow", "dvc", "pipeline")]
    for name in names:
        for other in module_files(name) - {Path("minigpt/__init__.py")}:
            same = other.parent == file.parent
            assert same or level(other) < level(file), f"{file} imports {other}"


def test_only_tracking_imports_mlflow():
    importing = [
        str(file)
        for file in FILES
        if any(name.split(".")[0] == "mlflow" for name in imports(ROOT / file))
    ]
    assert importing == [
        "minigpt/cli/mlflow_store.py",
        "pipeline/tracking/datasets.py",
        "pipeline/tracking/onnx_model.py",
        "pipeline/tracking/store.py",
        "pipeline/tracking/text_model.py",
        "pipeline/tracking/upload.py",
    ]


def test_model_py_touches_no_file_tokenizer_or_sampling():
    names = imports(ROOT / "minigpt/model/model.py")
    assert {name.split(".")[0] for name in names} == {"math", "torch", "minigpt"}
    ours = {str(file) for name in names for file in module_files(name)} - {"minigpt/__init__.py"}
    assert {Path(file).stem for file in ours} == {"__init__", "config", "kernels", "variants"}


def test_no_code_unpickles():
    unsafe = re.compile(
        r"import pickle|joblib|(?<!safetensors\.)torch\.(load|save)\(|allow_pickle=True|read_pickle"
    )
    assert not [file for file in FILES if unsafe.search((ROOT / file).read_text())]


@pytest.mark.parametrize("stage", STAGES)
def test_deps_of_a_stage_are_the_packages_it_imports(stage):
    listed = [dep for dep in STAGES[stage]["deps"] if dep.startswith(PACKAGES)]
    assert listed == sorted(listed)
    assert set(map(Path, listed)) == reached_packages(stage)


def keys_read(stage: str, root: Path = ROOT) -> set[str]:
    """Return the keys of params.yaml that the code of a stage reads, as section.key.

    The code reads a key as `params.section.key`, or as `config.key`, if it passes on the section,
    and a key outside of the sections as `params.key`.
    """
    trees = {
        file: ast.parse((root / file).read_text())
        for file in reached(Path(f"pipeline/{stage}.py"), root)
    }
    del trees[Path("minigpt/common/config.py")]
    attributes = {
        (ast.unparse(node.value).split(".")[-1], node.attr)
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
    }
    names = {".".join(pair) for pair in attributes}
    sections = {name for owner, name in attributes if owner in ("params", "load_params()")}
    sections -= {"runtime"}  # its keys affect no output
    return {
        key
        for key in keys_of(sections)
        if names & {key, f"config.{key.split('.')[-1]}", f"params.{key}"}
    }


def keys_of(sections: Iterable[str]) -> set[str]:
    """Return the keys of `sections` as section.key; a key outside of the sections is its own."""
    keys = set()
    for section in sections:
        fields = getattr(Params.model_fields[section].annotation, "model_fields", None)
        keys |= {section} if fields is None else {f"{section}.{key}" for key in fields}
    return keys


@pytest.mark.parametrize("stage", STAGES)
def test_params_of_a_stage_are_what_it_reads(stage):
    listed = STAGES[stage]["params"]
    assert listed == sorted(listed)
    single = {name for name in listed if "." in name}
    # the list of a foreach is read by DVC itself
    loop = re.sub(r"[${}]", "", DVC["stages"][stage].get("foreach", ""))
    assert keys_read(stage) | {loop} - {""} == single | keys_of(set(listed) - single)


@pytest.mark.parametrize(
    ("stage", "file", "read"),
    [
        ("evaluate", "pipeline/evaluate.py", "config.max_new_tokens"),
        ("train", "minigpt/training/optim.py", "config.beta2"),
        ("prepare", "minigpt/corpus/readers.py", "self.config.text_column"),
        ("export", "pipeline/export.py", "config.tolerance"),
        ("evaluate", "pipeline/evaluate.py", "params.threads"),
    ],
)
def test_keys_read_detects_an_unread_key(tmp_path, stage, file, read):
    copy(tmp_path)
    text = (tmp_path / file).read_text()
    assert read in text
    (tmp_path / file).write_text(text.replace(read, "None"))
    section = "data" if stage == "prepare" else stage
    key = read.split(".")[-1]
    assert keys_read(stage) - keys_read(stage, tmp_path) == {
        key if read.startswith("params") else f"{section}.{key}"
    }


def copy(folder: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package)


def test_a_stage_lists_every_section_of_params():
    assert set(Params.model_fields) - {"runtime"} == {
        name for stage in STAGES.values() for name in stage["params"] if "." not in name
    }


def test_imports_inside_functions_are_deps(tmp_path):
    copy(tmp_path)
    optim = tmp_path / "minigpt/training/optim.py"
    late = "\n\ndef late():\n    from minigpt.generation import sampling\n    return sampling\n"
    optim.write_text(optim.read_text() + late)
    more = reached_packages("train", tmp_path) - reached_packages("train")
    assert more == {Path("minigpt/generation")}


def test_committed_lock_matches_the_code():
    # If this fails, reports/ does not match the code: run `dvc repro` and commit.
    lock = YAML(typ="safe", pure=True).load(ROOT / "dvc.lock")["stages"]
    assert list(lock) == [stage for stage in STAGES if stage != "quantize"]
    for stage in lock:
        for dep in lock[stage]["deps"]:
            if dep["path"].startswith(PACKAGES):
                assert dvc_md5(ROOT / dep["path"]) == dep["md5"], (stage, dep["path"])


def dvc_md5(path: Path) -> str:
    """Return the MD5 that DVC computes for a file or a folder."""
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix != ".pyc")
    entries = [
        {"md5": dvc_md5(file), "relpath": file.relative_to(path).as_posix()} for file in files
    ]
    entries.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def loaded_after(code: str) -> set[str]:
    """Return the top-level modules that a new Python process has loaded after `code`."""
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return {name.split(".")[0] for name in out.splitlines()}


def test_data_stages_load_neither_mlflow_nor_torch():
    loaded = loaded_after("import pipeline.build_vocab, pipeline.prepare")
    assert not loaded & {"mlflow", "torch", "onnxruntime"}


def test_importing_a_stage_does_not_load_mlflow():
    assert "mlflow" not in loaded_after("import pipeline.train, pipeline.evaluate, pipeline.export")


def test_files_are_written_atomically():
    direct = re.compile(r"\.write_(text|bytes)\(|\.to_(csv|parquet|json)\([^i)]|\.savefig\(")
    texts = {str(file): (ROOT / file).read_text() for file in FILES}
    # what is written into the temporary path that atomic_file or atomic_folder gives is atomic
    assert [
        file
        for file, text in texts.items()
        if direct.search(text) and not re.search("with atomic_(file|folder)", text)
    ] == ["minigpt/export/checks.py"]  # a temporary file of its own
