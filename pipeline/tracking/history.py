"""Models that Git and DVC know, by dvc.lock and the reports, and records made from them."""

import functools
import hashlib
import json
import subprocess
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from minigpt.common.config import load_params
from minigpt.common.errors import UserError
from minigpt.model.checkpoint import load
from pipeline.common import paths
from pipeline.tracking import lineage, reports
from pipeline.tracking.git import git
from pipeline.tracking.params import flatten, numbers, run_name
from pipeline.tracking.record import Record


@dataclass(frozen=True)
class Snapshot:
    """The small files of the project at a Git `revision`, or in the working tree."""

    revision: str = ""
    experiment: str = ""  # the DVC experiment of this commit

    def read(self, path: Path) -> bytes:
        """Return the content of a file; empty if there is no such file."""
        if not self.revision:
            return path.read_bytes() if path.is_file() else b""
        command = ["git", "show", f"{self.revision}:./{path.as_posix()}"]
        return subprocess.run(command, capture_output=True, check=False).stdout

    @functools.cached_property
    def _stages(self) -> dict[str, Any]:
        try:
            return (YAML(typ="safe", pure=True).load(self.read(Path("dvc.lock"))) or {})["stages"]
        except (YAMLError, KeyError, TypeError):  # no lock, or one with merge conflicts
            return {}

    def _md5s(self, stage: str) -> dict[Path, str]:
        """Return the MD5 of each dep and out of `stage`."""
        entry = self._stages.get(stage, {})
        files = [*entry.get("deps", []), *entry.get("outs", [])]
        return {Path(file["path"]): file.get("md5") for file in files}

    @property
    def model_md5(self) -> str:
        return self._md5s("train").get(paths.MODEL, "")

    @property
    def params(self) -> dict[str, Any]:
        """The flat parameters that the stages were run with."""
        sections: dict[str, Any] = {}
        for entry in self._stages.values():
            for name, values in entry.get("params", {}).get("params.yaml", {}).items():
                sections.setdefault(name, {}).update(values)
        return flatten(sections) if sections else {}

    def reports(self, stage: str, model_md5: str) -> dict[Path, str]:
        """Return the text reports of `stage`; none if dvc.lock has other ones or another model."""
        md5s = self._md5s(stage)
        files = {path: self.read(path) for path in md5s if path.parent == paths.REPORTS}
        known = all(hashlib.md5(files[path]).hexdigest() == md5s[path] for path in files)
        if md5s.get(paths.MODEL) != model_md5 or not known:
            return {}
        return {path: content.decode() for path, content in files.items()}

    def onnx_model(self, model_md5: str) -> bytes:
        """Return the exported file from DVC's cache or remote; empty if neither has it."""
        import dvc.api

        if self._md5s("export").get(paths.MODEL) != model_md5:
            return b""
        try:
            return dvc.api.read(paths.ONNX_MODEL.as_posix(), rev=self.revision, mode="rb")
        except Exception:  # of DVC, the remote or the network
            return b""


def snapshot_of(name: str) -> Snapshot:
    """Return the snapshot of a DVC experiment or a Git revision.

    Raises:
        UserError: there is neither.
    """
    # several baselines may have an experiment of this name: the latest is meant
    experiments = git(
        "for-each-ref", "--sort=-committerdate", "--format=%(refname)", f"refs/exps/*/*/{name}"
    )
    options = ("--verify", "--quiet", "--end-of-options")
    for reference in (*experiments.splitlines(), name):
        if commit := git("rev-parse", *options, f"{reference}^{{commit}}"):
            return Snapshot(commit)
    raise UserError(f"{name}: no such DVC experiment or Git revision")


def models_in_git() -> list[Snapshot]:
    """Return a snapshot for each model in branches, tags and DVC experiments, the oldest first."""
    experiments = git("for-each-ref", "--format=%(objectname) %(refname:lstrip=-1)", "refs/exps")
    names = dict(line.split(" ", 1) for line in experiments.splitlines())
    commits = git("log", "--all", "--full-history", "--reverse", "--format=%H", "--", "dvc.lock")
    models: dict[str, Snapshot] = {}
    for commit in commits.splitlines():
        snapshot = Snapshot(commit, names.get(commit, ""))
        if snapshot.model_md5:
            models.setdefault(snapshot.model_md5, snapshot)
    return list(models.values())


def record_of_snapshot(snapshot: Snapshot) -> Record:
    """Make a record of a model that Git knows."""
    md5, parent = snapshot.model_md5, f"{snapshot.revision}^"
    summary = json.loads(snapshot.reports("train", md5).get(paths.TRAINING, "{}"))
    time = float(git("show", "--no-patch", "--format=%ct", snapshot.revision))
    record = Record.create(run_name(snapshot.params, parent), snapshot.params, time)
    tags = {"git_commit": snapshot.revision}
    if snapshot.experiment:
        baseline = git("rev-parse", parent)
        tags |= {"dvc_experiment": snapshot.experiment, "dvc_baseline": baseline}
    held_out = str(summary.get("held_out", True)).lower()
    record.update("run", {"restored": True})
    record.update("tags", {**tags, "model_md5": md5, "held_out": held_out})
    _restore_training(record, snapshot, summary)
    restore_evaluation(record, snapshot)
    reports.add_card(record)
    record.end("FINISHED", time)
    return record


def record_of_model(model: Path) -> Record:
    """Make a record of a model file whose training was not tracked here."""
    metadata = load(model)[1]
    sections = {"model": metadata["config"], "train": metadata["train"]}
    params = flatten({**load_params().model_dump(), **sections})
    record = Record.create(run_name(params, "HEAD"), params)
    record.update("run", {"restored": True})
    record.update("tags", lineage.origin())
    reports.add_identity(record, model, metadata["training"]["held_out"])
    _restore_training(record, Snapshot(), metadata["training"])
    reports.add_model_figures(record, model)
    return record


def _restore_training(record: Record, snapshot: Snapshot, summary: dict[str, Any]) -> None:
    """Add the curves of the training, or only its `summary` (as in training.json)."""
    texts = snapshot.reports("train", record.tags["model_md5"])
    if not texts:
        values = numbers(summary)
        record.log_metrics({name: values[name] for name in values if "/" in name})
        return
    tables = [pd.read_csv(StringIO(texts[file])) for file in texts.keys() & reports.CURVES.values()]
    # MLflow draws a curve by tokens only where a step has one value of each metric
    for step, row in pd.concat(tables).groupby("step").last().iterrows():
        record.log_metrics({"step": float(step), **row.dropna()})
    reports.add_reports(record, texts)
    reports.add_curves(record)


def restore_evaluation(record: Record, snapshot: Snapshot) -> bool:
    """Add evaluation and export from `snapshot`; return whether it has any of this model."""
    known = False
    for stage in reports.PREFIXES:
        texts = snapshot.reports(stage, record.tags["model_md5"])
        summary = next((text for file, text in texts.items() if file.suffix == ".json"), None)
        if summary is not None:
            reports.add_stage(record, stage, snapshot.params, json.loads(summary), texts)
            known = True
    return known
