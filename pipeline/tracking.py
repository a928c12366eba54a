"""What the stages tell MLflow. The only stage code that knows it, and it cannot change an out.

One trained model is one run. Its id is random, so no stage passes it on: train tags its run with the
SHA-256 of the model file it wrote, and evaluate and export find the run by the file they read.

Tracking never stops the work. Where the store is absent, locked or full, a warning says so, and what could not
be told is tried again. The numbers are in reports/ all the same: `python -m pipeline.tracking` makes the run of
the present model from them.
"""

import contextlib
import functools
import json
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from minigpt.checkpoint import load
from minigpt.config import Params, load_params
from minigpt.dataset import Tokens
from minigpt.errors import UserError
from minigpt.model import MiniGPT
from minigpt.tokenizer import Tokenizer
from minigpt.train import Progress, Row
from pipeline import project, run_stage
from pipeline.model_card import model_card

log = logging.getLogger(__name__)
EXPERIMENT = "minigpt"
SEND_EVERY = 5.0  # seconds; one call for many rows, since each costs milliseconds
SAMPLE_TOKENS = 120  # of the text that the model writes at each validation, from nothing and with seed 0
TRY_AGAIN_AFTER = 120.0  # seconds; a locked store holds each attempt up for twenty
CURVES = {"train/loss": project.REPORTS / "training.csv", "val/loss": project.REPORTS / "validation.csv"}


class Run:
    """One MLflow run. What cannot be told at once is kept, tried again now and then, and once more at the end."""

    def __init__(self, tokens: int = 0) -> None:
        self.id = ""  # none yet
        self._warned = False
        self._untold: list[Callable[[], Any]] = []
        self._silent_until = 0.0
        self._rows: list[tuple[float, Row]] = []
        self._samples: dict[str, list] = {"step": [], "text": []}
        self._known_step = {"train/loss": 0, "val/loss": 0}  # what a continued run has already
        self._sent_at = time.monotonic()
        self._mark_time(tokens)

    def tell(self, action: Callable[[], Any]) -> None:
        """Do `action` after all that was to be told before; it must be able to run twice."""
        self._untold.append(action)
        self._catch_up()

    def _catch_up(self) -> None:
        if time.monotonic() < self._silent_until:
            return
        try:
            while self._untold:
                self._untold[0]()
                del self._untold[0]
        except Exception as error:  # whatever a tracker does wrong, the model is worth more
            self._silent_until = time.monotonic() + TRY_AGAIN_AFTER
            if not self._warned:
                reason = " ".join(str(error).split())[:200]
                log.warning("tracking failed (%s); trying again from time to time", reason)
            self._warned = True

    @property
    def told_all(self) -> bool:
        return not self._untold

    def start(self, **kwargs: Any) -> None:
        """As `mlflow.start_run`; a run that was started already stays."""
        if not self.id:
            self.id = mlflow().start_run(**kwargs).info.run_id

    def end(self, status: str) -> None:
        """Tell what is left, and close the run."""
        self._silent_until = 0.0
        self.tell(self._send)
        if self.id:
            self.tell(lambda: mlflow().end_run(status))
        if not self.told_all:
            log.warning("not all was tracked; later, `python -m pipeline.tracking` sends what is missing")
            if self.id:
                with contextlib.suppress(Exception):
                    mlflow().end_run(status)

    def log(self, row: Row) -> None:
        """Take the metrics of one step; every few seconds they are sent together."""
        if "train/loss" in row:
            seconds = time.monotonic() - self._mark
            row = {**row, "tokens_per_second": (row["tokens"] - self._mark_tokens) / seconds}
        self._add(row)
        if time.monotonic() - self._sent_at > SEND_EVERY:
            self.tell(self._send)
        self._mark_time(row["tokens"])

    def _mark_time(self, tokens: float) -> None:
        """Training goes on from here: validation, samples and tracking are not its time."""
        self._mark, self._mark_tokens = time.monotonic(), tokens

    def _add(self, row: Row) -> None:
        if row["step"] > self._known_step["train/loss" if "train/loss" in row else "val/loss"]:
            self._rows.append((time.time(), row))

    def _send(self) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(when * 1000), int(row["step"]))
            for when, row in self._rows
            for name, value in row.items()
            if name != "step"
        ]
        for start in range(0, len(metrics), 1000):  # the most that MLflow takes at once
            mlflow().MlflowClient().log_batch(self.id, metrics[start : start + 1000])
        self._rows.clear()
        if self._samples["step"]:
            mlflow().log_table(self._samples, "samples.json")
            self._samples = {"step": [], "text": []}
        self._sent_at = time.monotonic()

    def sample(self, model: MiniGPT, tokenizer: Tokenizer, row: Row) -> None:
        """Take a text that the model writes at this step; the prompt and the seed are always the same."""
        from minigpt.backends.torch import TorchBackend
        from minigpt.inference import generate

        if row["step"] > self._known_step["val/loss"]:
            model.eval()
            text = "".join(generate(TorchBackend(model, tokenizer), "", SAMPLE_TOKENS))
            model.train()
            self._samples["step"].append(int(row["step"]))
            self._samples["text"].append(text)
        self._mark_time(row["tokens"])

    def finish_training(self, model: Path, held_out: bool) -> None:
        """Log curves and figures, and tag the run with the model it made."""
        digest = project.file_sha256(model)
        self.tell(self._send)
        self.tell(_log_curves)
        self.tell(lambda: mlflow().set_tag("held_out", str(held_out).lower()))
        self.tell(lambda: self._carry_over(digest))
        # last: a run with this tag is complete
        self.tell(lambda: mlflow().set_tag("model_sha256", digest))

    def _carry_over(self, digest: str) -> None:
        """Where the same bytes were made before, what evaluate and export found holds for this run: they will not
        run again."""
        earlier = _find(digest)
        if earlier is None:  # as in a fresh clone, whose reports are of this very model
            _send_reports(self, {})
            return
        found = earlier.data.metrics
        mlflow().log_metrics({name: found[name] for name in found if name.startswith(("evaluation/", "export/"))})
        mlflow().set_tag("evaluated_in_run", earlier.info.run_id)
        with tempfile.TemporaryDirectory() as folder:
            client = mlflow().MlflowClient()
            mlflow().log_artifacts(client.download_artifacts(earlier.info.run_id, "reports", folder), "reports")
        self._write_card()

    def report(self, prefix: str, values: dict[str, Any], files: list[Path]) -> None:
        """Log the numbers and the files of a stage, and write the model's card anew."""
        self.tell(lambda: self._report(prefix, values, files))

    def _report(self, prefix: str, values: dict[str, Any], files: list[Path]) -> None:
        mlflow().log_metrics({f"{prefix}/{name}": value for name, value in _numbers(values).items()})
        for file in files:
            mlflow().log_artifact(str(file), "reports")
        self._write_card()

    def _write_card(self) -> None:
        data = mlflow().get_run(self.id).data
        card = model_card(data.params, data.metrics, data.tags)
        mlflow().log_text(card, "model_card.md")
        mlflow().set_tag("mlflow.note.content", card)  # the description that the run's page shows

    def onnx_model(self, path: Path) -> None:
        """Log the exported file, untouched, as a model that takes text and gives text."""
        self.tell(lambda: _log_onnx_model(path))


@contextlib.contextmanager
def training_run(params: Params, tokens: Tokens, state_folder: Path, progress: Progress) -> Iterator[Run]:
    """The run of a training; one that was interrupted goes on in the run it began."""
    run = Run(progress.tokens)
    note = state_folder / "mlflow_run_id"
    history = list(progress.history)
    with _ended_properly(run):
        run.tell(lambda: _start_training(run, params, tokens, note, history))
        yield run
    note.unlink(missing_ok=True)


def _start_training(run: Run, params: Params, tokens: Tokens, note: Path, history: list[Row]) -> None:
    if note.exists():
        _continue(run, note.read_text())
    run.start(run_name=os.environ.get("DVC_EXP_NAME"), tags=_lineage())
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(run.id)
    mlflow().log_params(_flatten(params.model_dump(), "."))
    mlflow().log_input(_dataset(params.data.path, tokens), context="training")
    for row in history:  # what a killed process had not sent
        run._add(row)


def _continue(run: Run, run_id: str) -> None:
    """Take up an interrupted run, if the store still has it."""
    try:
        run.start(run_id=run_id)
    except mlflow().exceptions.MlflowException:
        return
    for name in run._known_step:
        history = mlflow().MlflowClient().get_metric_history(run_id, name)
        run._known_step[name] = max((metric.step for metric in history), default=0)


@contextlib.contextmanager
def model_run(model: Path) -> Iterator[Run]:
    """The run that made `model`; where the store has none, one restored from the reports."""
    run = Run()
    with _ended_properly(run):
        run.tell(lambda: _start_model_run(run, model))
        yield run


def _start_model_run(run: Run, model: Path) -> None:
    digest = project.file_sha256(model)
    found = _find(digest)
    if found is not None:
        run.start(run_id=found.info.run_id)
        return
    metadata = load(model)[1]
    run.start(run_name="restored", tags={**_lineage(), "restored": "true"})
    made_with = {"model": metadata["config"], "train": metadata["train"]}
    mlflow().log_params(_flatten({**load_params().model_dump(), **made_with}, "."))
    if project.TRAINING.exists() and json.loads(project.TRAINING.read_text()) == metadata["training"]:
        for file in CURVES.values():
            run._rows += [(time.time(), row) for row in pd.read_csv(file).to_dict("records")]
        run._send()
        _log_curves()
    else:  # the reports are of another model
        mlflow().log_metrics({name: value for name, value in _numbers(metadata["training"]).items() if "/" in name})
    held_out = str(metadata["training"]["held_out"]).lower()
    mlflow().set_tags({"model_sha256": digest, "held_out": held_out})


@contextlib.contextmanager
def _ended_properly(run: Run) -> Iterator[None]:
    """A crash reads FAILED, a signal KILLED, and only what came to its end FINISHED."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (SystemExit, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        run.end(status)


@functools.cache
def mlflow() -> Any:
    """MLflow, opened on the project's store; imported only here, since that takes over a second."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds; a dead server must not hold training up
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what goes wrong comes as an exception, too
    store = project.root() / "mlruns"
    store.mkdir(exist_ok=True)
    local = "MLFLOW_TRACKING_URI" not in os.environ  # set_tracking_uri sets it
    if local:
        mlflow.set_tracking_uri(f"sqlite:///{store / 'mlflow.db'}")
    # several processes that create the database at once would corrupt it
    with FileLock(store / ".lock", timeout=120):
        experiment = mlflow.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            location = (store / "artifacts").as_uri() if local else None
            mlflow.create_experiment(EXPERIMENT, artifact_location=location)
    mlflow.set_experiment(EXPERIMENT)
    link = project.root() / "mlflow.db"
    if local and not link.is_symlink() and not link.exists():
        with contextlib.suppress(OSError):  # a convenience, which Windows may refuse
            link.symlink_to("mlruns/mlflow.db")  # a bare `mlflow ui` looks there
    return mlflow


def _find(digest: str) -> Any:
    """The latest run that made the model with this SHA-256, or None."""
    client = mlflow().MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs(
        [experiment.experiment_id],
        f"tags.model_sha256 = '{digest}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return found[0] if found else None


def _lineage() -> dict[str, str]:
    """Where a run comes from, as tags: the Git commit and DVC's experiment."""

    def git(*command: str) -> str:
        try:
            return subprocess.run(["git", *command], capture_output=True, text=True, check=False).stdout.strip()
        except OSError:  # no Git here
            return ""

    tags = {
        "git_commit": git("rev-parse", "HEAD"),
        # what the pipeline itself writes does not count
        "git_dirty": str(bool(git("status", "--porcelain", "-uno", "--", ".", ":!reports", ":!dvc.lock"))).lower(),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
    }
    return {name: value for name, value in tags.items() if value}


def _dataset(path: str, tokens: Tokens) -> Any:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    source = CodeDatasetSource({"data.path": path})
    return MetaDataset(source, name=Path(path).name, digest=tokens.sha256()[:16])  # type: ignore[abstract]


def _log_curves() -> None:
    for file in CURVES.values():
        mlflow().log_artifact(str(file), "reports")
    mlflow().log_figure(_loss_figure(), "figures/loss.png")


def _loss_figure() -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, file in CURVES.items():
        table = pd.read_csv(file)
        axes.plot(table["step"], table[name], label=name)
    axes.set(xlabel="step", ylabel="cross-entropy (nats a token)", title="Loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _log_onnx_model(path: Path) -> None:
    from importlib.metadata import version

    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    from minigpt.backends.onnx import OnnxBackend

    text = Schema([ColSpec("string", "text")])
    packages = ["numpy", "onnxruntime", "pandas"]
    if OnnxBackend(path).tokenizer.kind == "bpe":
        packages.append("tokenizers")
    mlflow().pyfunc.log_model(
        name="model",
        python_model=str(Path(__file__).with_name("text_model.py")),
        artifacts={"onnx": str(path)},
        code_paths=["minigpt"],
        signature=ModelSignature(inputs=text, outputs=text),
        input_example=pd.DataFrame({"text": ["Once upon a time"]}),
        pip_requirements=[f"{package}=={version(package)}" for package in packages],  # given: guessing takes seconds
    )


def _flatten(values: dict[str, Any], separator: str) -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    return pd.json_normalize(values, sep=separator).iloc[0].to_dict()


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    flat = _flatten(values, "/")
    return {
        name: value for name, value in flat.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }


def main() -> None:
    """Send what the store lacks of the present model: its run, curves, evaluation and ONNX file."""
    if not project.MODEL.exists():
        raise UserError(f"{project.MODEL}: not found; run `dvc repro`")
    with model_run(project.MODEL) as run:
        run.tell(lambda: _send_missing(run))
    if not run.told_all:
        raise UserError("the tracking store does not answer; mend it and try again")
    log.info("the tracking store has the run of %s", project.MODEL)


def _send_reports(run: Run, known: Mapping[str, float]) -> None:
    """Log the reports that are here and of this model, if the run's metrics do not hold them yet."""
    for stage, prefix, names in (
        ("evaluate", "evaluation", ["evaluation.json", "accuracy.csv", "samples.md"]),
        ("export", "export", ["export.json"]),
    ):
        if project.in_lock(stage) and not any(name.startswith(prefix + "/") for name in known):
            files = [project.REPORTS / name for name in names]
            run._report(prefix, json.loads(files[0].read_text()), files)


def _send_missing(run: Run) -> None:
    found = mlflow().get_run(run.id)
    _send_reports(run, found.data.metrics)
    logged = mlflow().search_logged_models([found.info.experiment_id], output_format="list")
    if project.ONNX_MODEL.exists() and not any(model.source_run_id == run.id for model in logged):
        _log_onnx_model(project.ONNX_MODEL)


if __name__ == "__main__":
    run_stage(main)
