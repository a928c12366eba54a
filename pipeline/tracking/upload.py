"""Make MLflow equal to a record: one function, safe to repeat after any failure."""

from collections.abc import Container
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock

from minigpt.common.files import file_digest
from pipeline.tracking import store
from pipeline.tracking.onnx_model import log_onnx_model
from pipeline.tracking.params import READER_PREFIXES
from pipeline.tracking.record import Record
from pipeline.tracking.store import client

# metrics and tags of the stages that only read the model
EVALUATION = ("evaluation/", "export/", *READER_PREFIXES, "validation_tokens", store.DESCRIPTION)
MAX_BATCH = 1000  # metrics in a request to MLflow
LOCK_TIMEOUT = 30.0  # seconds


def upload(record: Record) -> bool:
    """Create or find the run of `record`, log what is missing, and return whether anything was."""
    with FileLock(record.folder / ".lock", timeout=LOCK_TIMEOUT):
        return _Upload(record).run()


class _Upload:
    """Comparison of a record with its run in the store.

    `sent` is the part that is confirmed: run id, offset in the metrics, digests of the artifacts and
    the end time. A failure loses what this upload confirmed, so the next one repeats its requests.
    """

    def __init__(self, record: Record):
        self.record = record
        # a digest, as the address of a store may hold a password
        self.key = sha256(store.uri().encode()).hexdigest()[:16]
        self.sent: dict[str, Any] = record.read("uploads").get(self.key, {})
        self.adopted = False  # a run that another record, or an older version of MiniGPT, made

    def run(self) -> bool:
        run = self._find_run() or self._create_run()
        self.adopted = run.data.tags.get("record") != self.record.id
        if run.info.run_id != self.sent.get("run_id"):
            self.sent = {"run_id": run.info.run_id}
        before = dict(self.sent)
        self._log_params_and_tags(run)
        self._log_dataset(run)
        self._log_metrics(run)
        self._log_artifacts(run)
        self._log_onnx_model(run)
        self._set_status(run)
        self.record.update("uploads", {self.key: self.sent})
        return self.sent != before

    def _find_run(self) -> Any:
        if run := store.get_run(self.sent.get("run_id", "")):
            return run
        if run := store.find(f"tags.record = '{self.record.id}'"):
            return run
        restored = "restored" in self.record.info
        return store.find_model(self.record.tags["model_md5"]) if restored else None

    def _create_run(self) -> Any:
        info = self.record.info
        tags = {"record": self.record.id}
        if "restored" in info:
            tags["restored"] = "true"
        start = int(info["start_time"] * 1000)
        return client().create_run(store.experiment_id(), start, tags, info["name"])

    def _is_missing(self, name: str, known: Container[str]) -> bool:
        """Return whether to log a metric or a tag: an adopted run keeps what it has of training."""
        return not self.adopted or name not in known or name.startswith(EVALUATION)

    def _log_params_and_tags(self, run: Any) -> None:
        from mlflow.entities import Param, RunTag

        known = run.data.tags
        tags = [
            RunTag(name, text)
            for name, text in self.record.tags.items()
            if name != "onnx_sha256" and known.get(name) != text and self._is_missing(name, known)
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

    def _log_metrics(self, run: Any) -> None:
        from mlflow.entities import Metric

        rows, self.sent["offset"] = self.record.metrics(self.sent.get("offset", 0))
        # a store keeps one of equal points, so they can be sent twice
        points = [
            Metric(name, value, int(row["time"] * 1000), int(row["step"]))
            for row in rows
            for name, value in row.items()
            if name not in ("time", "step") and self._is_missing(name, run.data.metrics)
        ]
        for start in range(0, len(points), MAX_BATCH):
            client().log_batch(run.info.run_id, points[start : start + MAX_BATCH])

    def _log_artifacts(self, run: Any) -> None:
        sent = self.sent.get("artifacts", {})
        files = [file for file in self.record.artifacts.rglob("*") if file.is_file()]
        digests = {
            file.relative_to(self.record.artifacts): file_digest(file, "md5")
            for file in files
            if not file.name.startswith(".")  # a file that is being written
        }
        for name in digests:
            if sent.get(str(name)) != digests[name]:
                folder = name.parent.as_posix() if name.parent.name else None
                client().log_artifact(run.info.run_id, str(self.record.artifacts / name), folder)
        self.sent["artifacts"] = {str(name): digests[name] for name in digests}

    def _log_onnx_model(self, run: Any) -> None:
        digest, tags, file = (
            self.record.tags.get("onnx_sha256"),
            run.data.tags,
            self.record.onnx_model,
        )
        if digest is None:
            return
        if "onnx_model" not in tags or tags.get("onnx_sha256") != digest:
            # an equal model may have been logged by another run
            same = store.find(f"tags.onnx_sha256 = '{digest}' and tags.onnx_model != ''")
            if same is None and not file.exists():
                return
            uri = same.data.tags["onnx_model"] if same else log_onnx_model(run.info.run_id, file)
            store.set_tags(run.info.run_id, {"onnx_model": uri, "onnx_sha256": digest})
        file.unlink(missing_ok=True)

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
