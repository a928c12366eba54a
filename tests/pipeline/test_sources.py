"""Texts of users, through the pipeline."""

import errno
import gzip
import json
import signal
import sys

import pytest
from conftest import Project

STAGES = (["pipeline.build_vocab"], ["pipeline.prepare"])


def read(project: Project, *changes: str) -> str:
    """Run the stages that read text with changed parameters; return their output."""
    params = (project.root / "params.yaml").read_text()
    for change in changes:
        key, _, value = change.partition("=")
        lines = [
            f"  {key}: {value}" if line.startswith(f"  {key}: ") else line
            for line in params.splitlines()
        ]
        params = "\n".join(lines) + "\n"
    (project.root / "params.yaml").write_text(params)
    return "".join(project.run(sys.executable, "-m", *stage) for stage in STAGES)


def summary(project: Project) -> dict:
    return json.loads((project.root / "reports/data.json").read_text())


def test_dvc_notices_a_change_in_a_folder(project):
    folder = project.root / "mine"
    folder.mkdir()
    (folder / "a.txt").write_text("a tale\n\nanother tale")
    (folder / "b.csv").write_text("text\nof a table")
    project.edit("params.yaml", "path: data/raw/tales.txt", "path: mine")
    project.edit("params.yaml", "val_fraction: auto", "val_fraction: 0.0")
    project.run("dvc", "repro", "prepare")
    assert json.loads(project.run("dvc", "status", "--json", "prepare")) == {}
    (folder / "b.csv").write_text("text\nof another table")
    assert {"build_vocab", "prepare"} <= set(json.loads(project.run("dvc", "status", "--json")))


@pytest.mark.full
def test_a_queued_experiment_has_text_added_to_dvc(project):
    text = "text\n" + "\n".join(f'"A line of text, number {number}."' for number in range(300))
    (project.root / "data/raw/mine.csv.gz").write_bytes(gzip.compress(text.encode()))
    project.run("dvc", "add", "data/raw/mine.csv.gz")
    project.commit()
    project.run(
        "dvc", "exp", "run", "--queue", "--name", "own", "-S", "data.path=data/raw/mine.csv.gz"
    )
    project.run("dvc", "exp", "run", "--run-all")
    assert project.run("dvc", "exp", "list", "--name-only").split() == [
        "own"
    ]  # only what succeeded is in it


def test_a_high_min_freq_is_reported(project):
    (project.root / "mine.txt").write_text("a rare text")
    params = (project.root / "params.yaml").read_text()
    params = params.replace("data/raw/tales.txt", "mine.txt").replace("min_freq: 1", "min_freq: 3")
    (project.root / "params.yaml").write_text(
        params.replace("val_fraction: auto", "val_fraction: 0.0")
    )
    out = project.run(sys.executable, "-m", "pipeline.build_vocab")
    assert "tokenizer.min_freq: 100 % of the text becomes <unk>; lower it" in out


@pytest.mark.slow
def test_a_duplicate_document_is_dropped(project):
    (project.root / "mine.txt").write_text("a tale\n\na tale\n\nthe end")
    read(project, "path=mine.txt", "val_fraction=0.0")
    data = summary(project)
    assert (data["train"]["documents"], data["duplicates_dropped"]) == (2, 1)
    assert "Equal documents dropped: 1" in (project.root / "reports/data.md").read_text()


@pytest.mark.slow
def test_both_layouts_take_documents_of_any_length(project):
    long = " ".join(f"word{number}" for number in range(2000))  # far beyond the context
    (project.root / "mine.txt").write_text("\n\n".join(["x", "a tale", long, ".", "the end"]))
    read(project, "path=mine.txt", "val_fraction=0.0")
    for layout in ("packed", "padded"):
        read(project, f"layout={layout}")
        project.run(sys.executable, "-m", "pipeline.train")


def test_holding_out_every_document_is_an_error(project):
    (project.root / "mine.txt").write_text("one document\n")
    params = (project.root / "params.yaml").read_text()
    params = params.replace("data/raw/tales.txt", "mine.txt").replace(
        "val_fraction: auto", "val_fraction: 0.999999"
    )
    (project.root / "params.yaml").write_text(params)
    out = project.run(sys.executable, "-m", "pipeline.build_vocab", code=1)
    assert "mine.txt: every document fell into the validation split" in out
    assert out.count("\n") == 1


@pytest.mark.slow
def test_unusual_characters_pass_all_stages(project):
    odd = [
        "שלום עולם, מה שלומך",
        "👩‍👩‍👧‍👦 family",
        "nul\0inside",
        "half \ud83d pair",
        "back`tick | pipe",
    ]
    (project.root / "mine.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in odd * 40)
    )
    read(project, "path=mine.jsonl", "val_fraction=0.0")
    assert summary(project)["train"]["documents"] == len(odd)
    for stage in ("train", "evaluate", "export"):
        out = project.run(sys.executable, "-m", f"pipeline.{stage}")
        assert "Traceback" not in out
    assert project.run(
        "minigpt-cli", "generate", "--prompt", "שלום", "--max-new-tokens", "5"
    ).startswith("שלום")


def test_a_hundred_megabytes_on_one_line(project, full):
    size = 100_000_000 if full else 10_000_000
    (project.root / "mine.txt").write_text("tale " * (size // 5))
    for documents in ("blank_line", "none"):
        read(project, "path=mine.txt", "val_fraction=0.0", f"documents={documents}")
        # a document is stripped, a stream ends with a line break
        assert abs(summary(project)["train"]["characters"] - size) <= 1


def test_a_full_disk_leaves_the_old_files(project, monkeypatch):
    from pipeline import prepare
    from pipeline.common.stage import run_stage

    monkeypatch.chdir(project.root)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    before = {file: file.read_bytes() for file in (project.root / "data/tokens").iterdir()}

    def full_disk(self, table):
        raise OSError(errno.ENOSPC, "No space left on device", "data/tokens/train.bin")

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", full_disk)
    with pytest.raises(SystemExit, match=r"cannot be used \(No space left on device\); make room"):
        run_stage(prepare.main)
    assert {file: file.read_bytes() for file in (project.root / "data/tokens").iterdir()} == before
    assert not list((project.root / "data").glob(".[!g]*"))
