"""What Git and DVC know of the models that were made: dvc.lock and the reports, now and at any commit."""

import functools
import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from minigpt.common.errors import UserError
from pipeline.common import paths
from pipeline.tracking.lineage import flatten, git


@dataclass(frozen=True)
class Snapshot:
    """The small files of the project at a Git `revision`, or as they lie here."""

    revision: str = ""
    experiment: str = ""  # DVC's, that this commit holds

    def read(self, path: Path) -> bytes:
        """The content; empty where there is no such file."""
        if not self.revision:
            return path.read_bytes() if path.is_file() else b""
        command = ["git", "show", f"{self.revision}:./{path.as_posix()}"]
        return subprocess.run(command, capture_output=True, check=False).stdout

    @functools.cached_property
    def _stages(self) -> dict[str, Any]:
        try:
            return (YAML(typ="safe", pure=True).load(self.read(Path("dvc.lock"))) or {})["stages"]
        except (YAMLError, KeyError, TypeError):  # no lock, or one in the midst of a merge
            return {}

    def _md5s(self, stage: str) -> dict[Path, str]:
        """Of what `stage` read and made, by path."""
        entry = self._stages.get(stage, {})
        return {
            Path(item["path"]): item.get("md5")
            for item in [*entry.get("deps", []), *entry.get("outs", [])]
        }

    @property
    def model_md5(self) -> str:
        return self._md5s("train").get(paths.MODEL, "")

    @property
    def params(self) -> dict[str, Any]:
        """What the stages were run with, flat."""
        sections: dict[str, Any] = {}
        for entry in self._stages.values():
            sections |= entry.get("params", {}).get("params.yaml", {})
        return flatten(sections) if sections else {}

    def reports(self, stage: str, model_md5: str) -> dict[Path, str]:
        """The text reports of `stage`, by path; none where dvc.lock knows them of another model, or otherwise."""
        md5s = self._md5s(stage)
        files = {path: self.read(path) for path in md5s if path.parent == paths.REPORTS}
        known = all(
            hashlib.md5(content).hexdigest() == md5s[path] for path, content in files.items()
        )
        if md5s.get(paths.MODEL) != model_md5 or not known:
            return {}
        return {path: content.decode() for path, content in files.items()}

    def onnx_model(self, model_md5: str) -> bytes:
        """The exported file, from DVC's cache or remote; empty where neither has it, or it is of another model."""
        import dvc.api

        if self._md5s("export").get(paths.MODEL) != model_md5:
            return b""
        try:
            return dvc.api.read(paths.ONNX_MODEL.as_posix(), rev=self.revision, mode="rb")
        except Exception:  # DVC's, the remote's, the network's
            return b""


def made_by(name: str) -> Snapshot:
    """What DVC's experiment of that name made, or what a Git revision holds.

    Raises:
        UserError: there is neither.
    """
    # under several baselines a name may stand for several experiments: the latest is meant
    experiments = git(
        "for-each-ref", "--sort=-committerdate", "--format=%(refname)", f"refs/exps/*/*/{name}"
    )
    for reference in (*experiments.splitlines(), name):
        if commit := git(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{reference}^{{commit}}"
        ):
            return Snapshot(commit)
    raise UserError(f"{name}: no experiment of DVC's and no Git revision")


def committed() -> list[Snapshot]:
    """One for each model that Git knows, in branches, tags and DVC's experiments, the oldest first."""
    names = dict(
        line.split(" ", 1)
        for line in git(
            "for-each-ref", "--format=%(objectname) %(refname:lstrip=-1)", "refs/exps"
        ).splitlines()
    )
    commits = git(
        "log", "--all", "--full-history", "--reverse", "--format=%H", "--", "dvc.lock"
    ).splitlines()
    models: dict[str, Snapshot] = {}
    for commit in commits:
        snapshot = Snapshot(commit, names.get(commit, ""))
        if snapshot.model_md5:
            models.setdefault(snapshot.model_md5, snapshot)
    return list(models.values())
