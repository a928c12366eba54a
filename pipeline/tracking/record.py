"""A tracking run as a folder of files; `upload` makes MLflow equal to a record.

    .minigpt/runs/<id>/
      run.json       name, status, start and end time (seconds)
      params.json    tags.json    datasets.json
      changes.json   parameters that differ from the committed params.yaml
      metrics.jsonl  a line for each step: {"time": …, "step": …, metric: value, …}
      artifacts/     files, as MLflow shows them
      model.onnx     the exported model, until its upload is confirmed
      .uploads.json  what each store has confirmed (by `upload` only)
      .lock          held by the process that writes the record

A record holds no address of a store and so no credentials.
"""

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from minigpt.common.files import atomic_file, atomic_write
from minigpt.training.train import Metrics
from pipeline.common import paths
from pipeline.tracking.params import as_text, model_params


class Record:
    """The record in `folder`; the name of the folder is the id of the record."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.id = folder.name
        self.artifacts = folder / "artifacts"
        self.onnx_model = folder / "model.onnx"
        # shared with the thread that uploads
        self.lock = FileLock(folder / ".lock", thread_local=False)

    @classmethod
    def create(
        cls, name: str, params: Mapping[str, Any], start_time: float | None = None
    ) -> "Record":
        """Make a record of a run that is under way; `params` are flat."""
        started = start_time or time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(started))
        record = cls(_folder() / f"{stamp}-{uuid.uuid4().hex[:8]}")
        record.artifacts.mkdir(parents=True)
        (record.folder / "metrics.jsonl").touch()
        record.update("params", as_text(model_params(params)))
        record.update("run", {"name": name, "status": "RUNNING", "start_time": started})
        return record

    def read(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file; empty if there is no such file."""
        file = self.folder / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def update(self, name: str, values: Mapping[str, Any]) -> None:
        """Merge `values` into a JSON file."""
        text = json.dumps({**self.read(name), **values}, indent=1)
        atomic_write(self.folder / f"{name}.json", text.encode())

    @property
    def info(self) -> dict[str, Any]:
        return self.read("run")

    @property
    def tags(self) -> dict[str, str]:
        return self.read("tags")

    def end(self, status: str, end_time: float | None = None) -> None:
        """Set the final status."""
        self.update("run", {"status": status, "end_time": end_time or time.time()})

    def is_interrupted(self, training: str) -> bool:
        """Return whether the run is of this training, which did not finish."""
        return self.info.get("training") == training and self.info["status"] != "FINISHED"

    def close_if_abandoned(self) -> None:
        """Mark a run whose process is gone as killed; the caller holds the lock."""
        if self.info["status"] == "RUNNING":
            times = [row["time"] for row in self.metrics()[0]]
            self.end("KILLED", max(times, default=self.info["start_time"]))

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Append the metrics of one step ("step" is among them; 0 otherwise)."""
        line = json.dumps({"time": time.time(), "step": 0, **metrics})
        with (self.folder / "metrics.jsonl").open("ab") as file:
            # the first line break ends half a line of a killed process or a full disk
            file.write(f"\n{line}\n".encode())

    def metrics(self, offset: int = 0) -> tuple[list[Metrics], int]:
        """Return the metrics behind a byte offset, and the offset of their end."""
        with (self.folder / "metrics.jsonl").open("rb") as file:
            file.seek(offset)
            lines, line_break, _ = file.read().rpartition(b"\n")  # the last may be half written
        rows = []
        for line in lines.splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return rows, offset + len(lines + line_break)

    def latest_metrics(self) -> Metrics:
        """Return the last value of each metric."""
        return {
            name: row[name] for row in self.metrics()[0] for name in row.keys() - {"time", "step"}
        }

    def write_artifact(self, name: str, text: str) -> None:
        atomic_write(self.artifacts / name, text.encode())

    def read_artifact(self, name: str) -> str:
        """Return the text of an artifact; empty if there is none."""
        file = self.artifacts / name
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def add_onnx_model(self, path: Path) -> None:
        """Keep the exported model for the upload, as a hard link where the disk allows it."""
        with atomic_file(self.onnx_model) as file:
            try:
                os.link(path.resolve(), file)
            except OSError:
                shutil.copy(path, file)


def _folder() -> Path:
    return paths.root() / ".minigpt" / "runs"


def records_lock() -> FileLock:
    """Return the lock under which a process that finds no record makes one."""
    _folder().mkdir(parents=True, exist_ok=True)
    return FileLock(_folder() / ".lock")


def records() -> Iterator[Record]:
    """Yield all records, the oldest first."""
    for file in sorted(_folder().glob("*/run.json")):
        yield Record(file.parent)


def find_record(model_md5: str) -> Record | None:
    """Return the latest record of a run that made the model with this MD5."""
    found = [record for record in records() if record.tags.get("model_md5") == model_md5]
    return found[-1] if found else None
