"""Models that Git and DVC know, by dvc.lock and the reports, and records made from them."""

import functools
import hashlib
import subprocess
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from minigpt.common.errors import UserError
from minigpt.common.files import atomic_write, file_digest
from minigpt.model.checkpoint import load
from pipeline.common import paths
from pipeline.tracking import lineage, reports
from pipeline.tracking.git import all_experiments, git
from pipeline.tracking.params import as_text, changes, flatten, run_name
from pipeline.tracking.record import Record, find_record, records_lock

CURVES = (paths.REPORTS / "training.csv", paths.REPORTS / "validation.csv")


@dataclass(frozen=True)
class Snapshot:
    """The files of the project at a Git `revision`, or in the working tree."""

    revision: str = ""
    experiment: str = ""  # the DVC experiment of this commit

    def read(self, path: Path) -> bytes:
        """Return the content of a file that is in Git; empty if there is no such file."""
        if not self.revision:
            return path.read_bytes() if path.is_file() else b""
        command = ["git", "show", f"{self.revision}:./{path.as_posix()}"]
        return subprocess.run(command, capture_output=True, check=False).stdout

    @functools.cached_property
    def _stages(self) -> dict[str, Any]:
        lock = self.read(Path("dvc.lock"))
        try:
            return dict(YAML(typ="safe", pure=True).load(lock)["stages"])
        except (YAMLError, KeyError, TypeError):  # no lock, or one with merge conflicts
            return {}

    def _md5s(self, stage: str) -> dict[Path, str]:
        """Return the MD5 of each dep and out of `stage`, or of its parts, such as quantize@int8."""
        entries = [entry for name, entry in self._stages.items() if name.split("@")[0] == stage]
        files = [
            file for entry in entries for kind in ("deps", "outs") for file in entry.get(kind, [])
        ]
        return {Path(file["path"]): file.get("md5") for file in files}

    @functools.cached_property
    def model_md5(self) -> str:
        if self.revision:
            return self._md5s("train").get(paths.MODEL, "")
        return file_digest(paths.MODEL, "md5") if paths.MODEL.exists() else ""

    @property
    def params(self) -> dict[str, Any]:
        """The flat parameters that the stages were run with."""
        sections: dict[str, Any] = {}  # and `threads`, a single value
        for entry in self._stages.values():
            for name, values in entry.get("params", {}).get("params.yaml", {}).items():
                if "." not in name:  # the key of a section that another stage depends on as a whole
                    sections[name] = values
        if self._md5s("train").get(paths.MODEL) != self.model_md5:  # trained without DVC
            metadata = load(paths.MODEL)[1]
            sections["model"] = metadata["config"]
            sections["train"] = metadata.get("train", {})  # none if the model was converted
        return flatten(sections)

    def reports(self, stage: str) -> dict[Path, str]:
        """Return the text reports of `stage`; none if dvc.lock has other ones or another model."""
        md5s = self._md5s(stage)
        files = {path: self.read(path) for path in md5s if path.parent == paths.REPORTS}
        known = all(hashlib.md5(files[path]).hexdigest() == md5s[path] for path in files)
        if md5s.get(paths.MODEL) != self.model_md5 or not known:
            return {}
        return {path: content.decode() for path, content in files.items()}

    def onnx_model(self) -> bytes:
        """Return the exported file, also from DVC's cache or remote; empty if there is none."""
        md5s, content = self._md5s("export"), self.read(paths.ONNX_MODEL)
        if md5s.get(paths.MODEL) != self.model_md5:
            return b""
        if hashlib.md5(content).hexdigest() != md5s[paths.ONNX_MODEL]:
            import dvc.api

            try:
                content = dvc.api.read(paths.ONNX_MODEL.as_posix(), rev=self.revision, mode="rb")
            except Exception:  # of DVC, the remote or the network
                return b""
        return content


def snapshot_of(name: str) -> Snapshot:
    """Return the snapshot of a DVC experiment or a Git revision.

    Raises:
        UserError: there is neither.
    """
    # several commits may have an experiment of this name: the latest is meant
    if found := all_experiments(name):
        return Snapshot(max(found, key=lambda experiment: experiment.time).commit)
    options = ("--verify", "--quiet", "--end-of-options")
    if commit := git("rev-parse", *options, f"{name}^{{commit}}"):
        return Snapshot(commit)
    raise UserError(f"{name}: no such DVC experiment or Git revision")


def models_in_git() -> list[Snapshot]:
    """Return a snapshot for each model in branches, tags and DVC experiments, the oldest first."""
    names = {experiment.commit: experiment.name for experiment in all_experiments()}
    commits = git("log", "--all", "--full-history", "--reverse", "--format=%H", "--", "dvc.lock")
    models: dict[str, Snapshot] = {}
    for commit in commits.splitlines():
        snapshot = Snapshot(commit, names.get(commit, ""))
        if snapshot.model_md5:
            models.setdefault(snapshot.model_md5, snapshot)
    return list(models.values())


def find_or_restore(snapshot: Snapshot) -> Record:
    """Return the record of the run that made a model; make one if it was not tracked here."""
    with records_lock():
        return find_record(snapshot.model_md5) or _restore(snapshot)


def _restore(snapshot: Snapshot) -> Record:
    tags, parent, end_time = lineage.origin(), "HEAD", None
    if snapshot.revision:
        tags, parent = {"git_commit": snapshot.revision}, f"{snapshot.revision}^"
        end_time = float(git("show", "--no-patch", "--format=%ct", snapshot.revision))
    else:
        tags["model_sha256"] = file_digest(paths.MODEL, "sha256")
    if snapshot.experiment:
        tags |= {"dvc_experiment": snapshot.experiment, "dvc_baseline": git("rev-parse", parent)}
    changed = changes(snapshot.params, parent)
    title = snapshot.experiment or git("rev-parse", "--short", snapshot.revision or "HEAD")
    name = run_name(f"{title} (restored)".strip(), changed)
    record = Record.create(name, snapshot.params, end_time)
    record.update("run", {"restored": True})
    record.update("changes", as_text(changed))
    evaluation = reports.summarize(snapshot.reports("evaluate"))
    tags["held_out"] = str(evaluation.get("held_out", True)).lower()
    record.update("tags", {**tags, "model_md5": snapshot.model_md5})
    texts = snapshot.reports("train")
    reports.add_reports(record, texts)
    if texts:
        tables = [pd.read_csv(StringIO(texts[file])) for file in CURVES]
        # MLflow draws a curve by tokens only where a step has one value of each metric
        for step, row in pd.concat(tables).groupby("step").last().iterrows():
            record.log_metrics({"step": float(step), **row.dropna()})
    reports.add_card(record)
    record.end("FINISHED", end_time)
    return record


def restore_evaluation(record: Record, snapshot: Snapshot) -> None:
    """Add the evaluation and the export that `record` lacks and `snapshot` has."""
    known = record.latest_metrics()
    for stage, prefix in reports.PREFIXES.items():
        texts = snapshot.reports(stage)
        if texts and not any(name.startswith(f"{prefix}/") for name in known):
            reports.add_stage(record, stage, snapshot.params, texts)
    if content := snapshot.onnx_model():
        atomic_write(record.onnx_model, content)
