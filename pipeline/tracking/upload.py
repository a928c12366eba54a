"""Make MLflow equal to a record: one function, safe to repeat after any failure."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock

from minigpt.common.files import file_digest
from minigpt.training.train import Metrics
from pipeline.tracking import store
from pipeline.tracking.onnx_model import log_onnx_model
from pipeline.tracking.params import READER_PREFIXES
from pipeline.tracking.record import Record
from pipeline.tracking.store import client

EVALUATION = (
    "evaluation/",
    "export/",
)  # prefixes of the metrics of stages that only read the model
EVALUATION_TAGS = (*READER_PREFIXES, "validation_tokens", store.DESCRIPTION)
MAX_BATCH = 1000  # metrics in a request to MLflow
LOCK_TIMEOUT = 30.0  # seconds


def upload(record: Record) -> bool:
    """Create or find the run of `record` and log what is missing there; return whether anything was."""
    with FileLock(record.folder / ".lock", timeout=LOCK_TIMEOUT):
        return _Upload(record).run()


class _Upload:
    """Comparison of a record with its run in the store.

    `sent` is the confirmed part: id of the run, offset in the metrics, digests of the artifacts, end
    time, and "clean", which is false while an upload is under way.
    """

    def __init__(self, record: Record):
        self.record = record
        # a digest, as the address of a store may hold a password
        self.key = sha256(store.uri().encode()).hexdigest()[:16]
        self.sent: dict[str, Any] = record.read("uploads").get(self.key, {})

    def run(self) -> bool:
        run = self._find_run()
        if run is None:
            run = self._create_run()
        elif run.info.run_id != self.sent.get("run_id"):
            self.sent = {"run_id": run.info.run_id, "clean": False}  # nothing is confirmed
        before, was_clean = {**self.sent}, self.sent["clean"]
        # a run that another record or an older version of the project made keeps what it has
        adopted = run.data.tags.get("record") != self.record.id
        self._confirm(clean=False)
        self._log_params_and_tags(run, adopted)
        self._log_dataset(run)
        self._log_metrics(run, adopted, compare=not was_clean)
        self._log_artifacts(run)
        self._log_onnx_model(run)
        self._set_status(run)
        self._confirm(clean=True)
        return self.sent != before

    def _confirm(self, **values: Any) -> None:
        self.sent = {**self.sent, **values}
        self.record.update("uploads", {self.key: self.sent})

    def _find_run(self) -> Any:
        if run := store.get_run(self.sent.get("run_id", "")):
            return run
        if run := store.find(f"tags.record = '{self.record.id}'"):
            return run
        tags = self.record.tags
        return store.find_model(tags["model_md5"]) if "restored" in tags else None

    def _create_run(self) -> Any:
        info = self.record.info
        run = client().create_run(
            store.experiment_id(),
            int(info["start_time"] * 1000),
            {"record": self.record.id},
            info["name"],
        )
        self.sent = {"run_id": run.info.run_id, "clean": True}
        return run

    def _log_params_and_tags(self, run: Any, adopted: bool) -> None:
        from mlflow.entities import Param, RunTag

        known = run.data.tags
        tags = [
            RunTag(name, text)
            for name, text in self.record.tags.items()
            if (
                name != "onnx_sha256"
                and known.get(name) != text
                # where the run was adopted, only the evaluation may be newer
                and not (adopted and (name in known or name == "restored"))
            )
            or (adopted and name.startswith(EVALUATION_TAGS))
        ]
        params = [
            Param(name, text)
            for name, text in self.record.read("params").items()
            if name not in run.data.params
        ]
        if params or tags:
            client().log_batch(run.info.run_id, params=params, tags=tags)

    def _log_dataset(self, run: Any) -> None:
        dataset = self.record.read("dataset")
        if not dataset or (run.inputs and run.inputs.dataset_inputs):
            return
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        source = CodeDatasetSource({"data.path": dataset["path"]})
        name = Path(dataset["path"]).name
        entity = MetaDataset(source, name=name, digest=dataset["digest"])._to_mlflow_entity()  # type: ignore[abstract]
        inputs = [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])]
        try:
            client().log_inputs(run.info.run_id, inputs)
        except store.mlflow().exceptions.MlflowException:
            # fails if another run logs the same dataset at that moment
            client().log_inputs(run.info.run_id, inputs)

    def _log_metrics(self, run: Any, adopted: bool, compare: bool) -> None:
        from mlflow.entities import Metric

        rows, end = self.record.metrics(self.sent.get("offset", 0))
        if adopted:
            rows = [
                {
                    name: value
                    for name, value in row.items()
                    if name in ("time", "step")
                    or name.startswith(EVALUATION)
                    or name not in run.data.metrics
                }
                for row in rows
            ]
        points = [
            Metric(name, value, int(row["time"] * 1000), int(row["step"]))
            for row in rows
            for name, value in row.items()
            if name not in ("time", "step")
        ]
        if compare:  # an upload that failed may have got through
            known = set(_history(run.info.run_id, rows))
            points = [point for point in points if _key(point) not in known]
        for start in range(0, len(points), MAX_BATCH):
            client().log_batch(run.info.run_id, points[start : start + MAX_BATCH])
        self.sent["offset"] = end

    def _log_artifacts(self, run: Any) -> None:
        digests = self.sent.setdefault("artifacts", {})
        for file in sorted(self.record.artifacts.rglob("*")):
            name = file.relative_to(self.record.artifacts)
            if file.is_dir() or file.name.startswith("."):  # a file that is being written
                continue
            if digests.get(name.as_posix()) == (md5 := file_digest(file, "md5")):
                continue
            folder = name.parent.as_posix().removeprefix(".") or None
            client().log_artifact(run.info.run_id, str(file), folder)
            self.sent["artifacts"] = {**self.sent["artifacts"], name.as_posix(): md5}

    def _log_onnx_model(self, run: Any) -> None:
        digest = self.record.tags.get("onnx_sha256")
        logged = run.data.tags.get("onnx_sha256") if "onnx_model" in run.data.tags else None
        if digest is None or digest == logged:
            self.record.onnx_model.unlink(missing_ok=True)
            return
        # an equal model may have been logged by another run
        same = store.find(f"tags.onnx_sha256 = '{digest}' and tags.onnx_model != ''")
        if same is not None:
            uri = same.data.tags["onnx_model"]
        elif self.record.onnx_model.exists():
            uri = log_onnx_model(run.info.run_id, self.record.onnx_model)
        else:
            return
        store.set_tags(run.info.run_id, {"onnx_model": uri, "onnx_sha256": digest})
        self.record.onnx_model.unlink(missing_ok=True)

    def _set_status(self, run: Any) -> None:
        info = self.record.info
        if info["status"] == "RUNNING":
            if run.info.status != "RUNNING":
                client().update_run(run.info.run_id, "RUNNING")
            return
        end = int(info["end_time"] * 1000)
        if (run.info.status, run.info.end_time) != (info["status"], end):
            client().set_terminated(run.info.run_id, info["status"], end)
            self.sent["end_time"] = end


def _history(run_id: str, rows: list[Metrics]) -> Iterator[tuple[str, int, int]]:
    for name in {name for row in rows for name in row} - {"time", "step"}:
        yield from map(_key, client().get_metric_history(run_id, name))


def _key(metric: Any) -> tuple[str, int, int]:
    return metric.key, metric.step, metric.timestamp
