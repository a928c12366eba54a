"""What the stages tell MLflow. The only stage code that knows it, and it cannot change an out.

One trained model is one run. Its id is random, so no stage passes it on: train tags its run with the
SHA-256 of the model file it wrote, and evaluate and export find the run by the file they read.

Tracking never stops the work. Where the store is absent, locked or full, one warning is logged and the
rest of the stage goes untracked; its numbers are in reports/ all the same, and `python -m
pipeline.tracking` sends them later.
"""

import contextlib
import functools
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from minigpt.config import Params
from minigpt.dataset import Tokens
from minigpt.model import MiniGPT
from minigpt.tokenizer import CharTokenizer
from minigpt.train import Row
from pipeline import project, run_stage
from pipeline.model_card import model_card

log = logging.getLogger(__name__)
EXPERIMENT = "minigpt"
SEND_EVERY = 5.0  # seconds; one call for many rows, since each costs milliseconds
SAMPLE_TOKENS = 120  # of the text that the model writes at each validation, from nothing and with seed 0
TRAINING, VALIDATION = project.REPORTS / "training.csv", project.REPORTS / "validation.csv"


class Run:
    """One MLflow run that swallows its own failures: after the first, and a warning, it does nothing."""

    def __init__(self) -> None:
        self.working = True
        self.id = ""  # none yet
        self._unsent: list[tuple[float, Row]] = []
        self._unsent_samples: dict[str, list] = {"step": [], "text": []}
        self._known_step = {"train/loss": 0, "val/loss": 0}  # what a continued run has already
        self._sent_at = self._mark = time.monotonic()
        self._mark_tokens = 0.0

    def attempt(self, action: Callable[[], Any]) -> Any:
        """Do `action` unless tracking has failed before; returns its result, or None."""
        if not self.working:
            return None
        try:
            return action()
        except Exception as error:  # whatever a tracker does wrong, the model is worth more
            self.working = False
            reason = str(error).strip().partition("\n")[0]
            log.warning("tracking failed (%s); later, `python -m pipeline.tracking` sends what is missing", reason)
            return None

    def start(self, **kwargs: Any) -> None:
        """As `mlflow.start_run`."""
        self.id = mlflow().start_run(**kwargs).info.run_id

    def log(self, row: Row) -> None:
        """Take the metrics of one step; every few seconds they are sent together."""
        if "train/loss" in row:
            seconds = time.monotonic() - self._mark
            row = {**row, "tokens_per_second": (row["tokens"] - self._mark_tokens) / seconds}
        loss = "train/loss" if "train/loss" in row else "val/loss"
        if row["step"] > self._known_step[loss]:
            self._unsent.append((time.time(), row))
        if time.monotonic() - self._sent_at > SEND_EVERY:
            self.attempt(self._send)
        self._mark_time(row["tokens"])

    def _mark_time(self, tokens: float) -> None:
        """Training goes on from here: validation, samples and tracking are not its time."""
        self._mark, self._mark_tokens = time.monotonic(), tokens

    def _send(self) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(when * 1000), int(row["step"]))
            for when, row in self._unsent
            for name, value in row.items()
            if name != "step"
        ]
        self._unsent.clear()
        self._sent_at = time.monotonic()
        for start in range(0, len(metrics), 1000):  # the most that MLflow takes at once
            mlflow().MlflowClient().log_batch(self.id, metrics[start : start + 1000])
        if self._unsent_samples["step"]:
            mlflow().log_table(self._unsent_samples, "samples.json")
            self._unsent_samples = {"step": [], "text": []}

    def sample(self, model: MiniGPT, tokenizer: CharTokenizer, row: Row) -> None:
        """Log a text that the model writes at this step; the prompt and the seed are always the same."""
        self.attempt(lambda: self._sample(model, tokenizer, int(row["step"])))
        self._mark_time(row["tokens"])

    def _sample(self, model: MiniGPT, tokenizer: CharTokenizer, step: int) -> None:
        from minigpt.backends.torch import TorchBackend
        from minigpt.inference import generate

        model.eval()
        text = "".join(generate(TorchBackend(model, tokenizer), "", SAMPLE_TOKENS))
        model.train()
        self._unsent_samples["step"].append(step)
        self._unsent_samples["text"].append(text)

    def finish_training(self, model: Path) -> None:
        """Tag the run with the model it made, and log curves and figures."""
        self.attempt(lambda: self._finish_training(model))

    def _finish_training(self, model: Path) -> None:
        self._send()
        digest = project.file_sha256(model)
        earlier = _find(digest)
        mlflow().set_tag("model_sha256", digest)
        _log_curves()
        if earlier is not None:
            # the same bytes again: evaluate and export will not rerun, what they found holds for this run too
            found = {
                name: value
                for name, value in earlier.data.metrics.items()
                if name.startswith(("evaluation/", "export/"))
            }
            mlflow().log_metrics(found)
            mlflow().set_tag("evaluated_in_run", earlier.info.run_id)

    def report(self, prefix: str, values: dict[str, Any], files: list[Path]) -> None:
        """Log the numbers and the files of a stage."""
        self.attempt(lambda: self._report(prefix, values, files))

    def _report(self, prefix: str, values: dict[str, Any], files: list[Path]) -> None:
        numbers = {
            name: value
            for name, value in _flatten(values, "/").items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        mlflow().log_metrics({f"{prefix}/{name}": value for name, value in numbers.items()})
        for file in files:
            mlflow().log_artifact(str(file), "reports")
        data = mlflow().get_run(self.id).data
        card = model_card(data.params, data.metrics, data.tags)
        mlflow().log_text(card, "model_card.md")
        mlflow().set_tag("mlflow.note.content", card)  # the description that the run's page shows

    def onnx_model(self, path: Path) -> None:
        """Log the exported file, untouched, as a model that takes text and gives text."""
        self.attempt(lambda: _log_onnx_model(path))


@contextlib.contextmanager
def training_run(params: Params, tokens: Tokens, state_folder: Path) -> Iterator[Run]:
    """The run of a training; one that was interrupted goes on in the run it began."""
    run = Run()
    note = state_folder / "mlflow_run_id"
    with _ended_properly(run):
        run.attempt(lambda: _start_training(run, params, tokens, note))
        yield run
    note.unlink(missing_ok=True)


def _start_training(run: Run, params: Params, tokens: Tokens, note: Path) -> None:
    if note.exists() and _continue(run, note.read_text()):
        return
    run.start(run_name=os.environ.get("DVC_EXP_NAME"), tags=_lineage())
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(run.id)
    mlflow().log_params(_flatten(params.model_dump(), "."))
    mlflow().log_input(_dataset(params.data.path, tokens), context="training")


def _continue(run: Run, run_id: str) -> bool:
    """Take up an interrupted run; False where the store no longer has it."""
    client = mlflow().MlflowClient()
    try:
        run.start(run_id=run_id)
    except mlflow().exceptions.MlflowException:
        return False
    for name in run._known_step:
        history = client.get_metric_history(run_id, name)
        run._known_step[name] = max((metric.step for metric in history), default=0)
    return True


@contextlib.contextmanager
def model_run(model: Path) -> Iterator[Run]:
    """The run that made `model`; where the store has none, one restored from the reports."""
    run = Run()
    with _ended_properly(run):
        run.attempt(lambda: _start_model_run(run, model))
        yield run


def _start_model_run(run: Run, model: Path) -> None:
    digest = project.file_sha256(model)
    found = _find(digest)
    if found is not None:
        run.start(run_id=found.info.run_id)
        return
    from minigpt.checkpoint import load

    metadata = load(model)[1]
    run.start(run_name="restored", tags={**_lineage(), "model_sha256": digest, "restored": "true"})
    mlflow().log_params(_flatten({"model": metadata["config"], "train": metadata["train"]}, "."))
    mlflow().log_metrics({name: value for name, value in metadata["training"].items() if "/" in name})
    _log_curves()


@contextlib.contextmanager
def _ended_properly(run: Run) -> Iterator[None]:
    """A crash reads FAILED, a signal KILLED, and only what came to its end FINISHED."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except SystemExit:
        status = "KILLED"
        raise
    finally:
        run.attempt(run._send)
        if run.id:
            with contextlib.suppress(Exception):  # also where tracking failed on the way: the run is not to stay open
                mlflow().end_run(status)


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
        logging.getLogger(noisy).setLevel(logging.WARNING)
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
        result = subprocess.run(["git", *command], capture_output=True, text=True, check=False)
        return result.stdout.strip()

    tags = {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower(),
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
    files = [file for file in (TRAINING, VALIDATION) if file.exists()]
    for file in files:
        mlflow().log_artifact(str(file), "reports")
    if len(files) == 2:
        mlflow().log_figure(_loss_figure(), "figures/loss.png")


def _loss_figure() -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for file, name in ((TRAINING, "train/loss"), (VALIDATION, "val/loss")):
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

    text = Schema([ColSpec("string", "text")])
    packages = ("numpy", "onnxruntime", "pandas")
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


def main() -> None:
    """Send what the store lacks of the present model: its run, curves, evaluation and ONNX file."""
    with model_run(project.MODEL) as run:
        for prefix in ("evaluation", "export"):
            file = project.REPORTS / f"{prefix}.json"
            if file.exists():
                run.report(prefix, json.loads(file.read_text()), [file])
        if project.ONNX_MODEL.exists():
            run.onnx_model(project.ONNX_MODEL)
        if run.working:
            log.info("the tracking store has the run of %s", project.MODEL)


if __name__ == "__main__":
    run_stage(main)
