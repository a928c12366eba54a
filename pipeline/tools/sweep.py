"""`make sweep`: search for better parameters; each trial is a DVC experiment and an MLflow run.

    python -m pipeline.tools.sweep             a small search
    python -m pipeline.tools.sweep model.num_layers=2,4,6 --trials 20 --name deeper

A range is searched on a logarithmic scale; values with commas are the choices. Ctrl-C stops the
search, and the same command resumes it: finished trials are kept, and an interrupted one continues.
If the text, the code or another parameter has changed since, the losses cannot be compared, and the
search needs another name.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout

from minigpt.common.config import load_params
from minigpt.common.errors import UserError
from minigpt.common.files import file_digest
from pipeline.common import paths
from pipeline.common.stage import run_stage
from pipeline.tracking.history import snapshot_of
from pipeline.tracking.params import flatten, model_params

log = logging.getLogger(__name__)
SPACE = ["train.learning_rate=1e-3..1e-2", "model.num_layers=2,4,6"]
Space = Mapping[str, optuna.distributions.BaseDistribution]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tools.sweep", description="Search for better parameters."
    )
    parser.add_argument("space", nargs="*", help=f"default: {' '.join(SPACE)}")
    parser.add_argument(
        "--trials",
        type=int,
        default=10,
        help="number of trials, including those before an interruption",
    )
    parser.add_argument(
        "--name",
        default="sweep",
        help="name of the search; its experiments are <name>-0, <name>-1, …",
    )
    arguments = parser.parse_intermixed_args()
    if not re.fullmatch(r"[A-Za-z][\w-]*", arguments.name):
        raise UserError(
            f"--name: {arguments.name!r} cannot be part of a branch name; use letters, digits, - and _"
        )
    if arguments.trials < 1:
        raise UserError(f"--trials: must be 1 or more, but it is {arguments.trials}")
    space = parse_space(arguments.space or SPACE)
    folder = paths.root() / ".minigpt" / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f"{arguments.name}.lock", blocking=False):
            _search(_study(folder, arguments.name, space), space, arguments.trials)
    except Timeout:
        raise UserError(
            f"--name: another process runs the search {arguments.name!r}; choose another name"
        ) from None


def _search(study: optuna.Study, space: Space, trials: int) -> None:
    try:
        while (
            todo := trials - len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))
        ) > 0:
            _check_facts(study, space)  # a search takes hours, in which files may change
            log.info("%d trials left", todo)
            _run_trial(study, space)
    finally:
        print(summary(study))


def parse_space(texts: list[str]) -> Space:
    """["train.learning_rate=1e-4..1e-2", …] → {"train.learning_rate": a distribution, …}.

    Raises:
        UserError: a text is neither a range of positive numbers nor a list of values.
    """
    space: dict[str, optuna.distributions.BaseDistribution] = {}
    for text in texts:
        name, _, values = text.partition("=")
        if not name or not values:
            raise UserError(
                f"{text}: must be like train.learning_rate=1e-4..1e-2 or model.num_layers=2,4,6"
            )
        if ".." in values:
            space[name] = _range(text, *values.split("..", 1))
        else:
            space[name] = optuna.distributions.CategoricalDistribution(values.split(","))
    return space


def _range(text: str, low: str, high: str) -> optuna.distributions.BaseDistribution:
    try:
        if low.isdecimal() and high.isdecimal():
            return optuna.distributions.IntDistribution(int(low), int(high), log=True)
        return optuna.distributions.FloatDistribution(float(low), float(high), log=True)
    except ValueError:
        raise UserError(
            f"{text}: a range must go from a positive number to a greater one"
        ) from None


def _study(folder: Path, name: str, space: Space) -> optuna.Study:
    """Create the search with this name, or open an interrupted one."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=name, storage=f"sqlite:///{folder / name}.db", load_if_exists=True
    )
    study.sampler = optuna.samplers.TPESampler(
        seed=len(study.trials)
    )  # other suggestions than before
    _check_facts(study, space)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):  # was killed
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _check_facts(study: optuna.Study, space: Space) -> None:
    facts = _facts(space)
    before = study.user_attrs.get("facts", facts)
    if differing := sorted(
        fact for fact in facts.keys() & before.keys() if facts[fact] != before[fact]
    ):
        name = study.study_name
        raise UserError(
            f"--name: {name!r} was started with another {', '.join(differing)}; choose another name"
        )
    study.set_user_attr("facts", facts)


def _facts(space: Space) -> dict[str, Any]:
    """Return what the losses depend on: space, text, code and the fixed parameters, by name."""
    params = model_params(flatten(load_params().model_dump()))
    texts = [
        Path(path) for path in (params["data.path"], params["train.init_from"]) if path is not None
    ]
    files = sorted(file for text in texts for file in (text, *text.rglob("*")) if file.is_file())
    return {
        "space": {
            name: optuna.distributions.distribution_to_json(values)
            for name, values in space.items()
        },
        "text": hashlib.md5(
            "".join(file_digest(file, "md5") for file in files).encode()
        ).hexdigest(),
        "code": "".join(
            paths.code_sha256(stage) for stage in ("build_vocab", "prepare", "train", "evaluate")
        ),
        **{name: value for name, value in params.items() if name not in space},
    }


def _run_trial(study: optuna.Study, space: Space) -> None:
    trial = study.ask(dict(space))
    name = f"{study.study_name}-{trial.number}"
    settings = [f"{parameter}={value}" for parameter, value in trial.params.items()]
    log.info("%s: %s", name, " ".join(settings))
    command = [
        "dvc",
        "exp",
        "run",
        "--temp",
        "--name",
        name,
        *(f"--set-param={text}" for text in settings),
    ]
    process = subprocess.Popen(command, process_group=0)
    try:
        code = process.wait()
    except BaseException:  # the trial stays open, and the next call continues it
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        raise
    if code:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise UserError(
            f"{name}: failed (see above); the same command continues with the next trial"
        )
    loss = json.loads(snapshot_of(name).read(paths.EVALUATION))["loss"]
    study.tell(trial, loss)
    log.info("%s: validation loss %.4f", name, loss)


def summary(study: optuna.Study) -> str:
    """Return a table of the finished trials, the best first, and how to promote the best."""
    trials = sorted(
        study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)),
        key=lambda trial: trial.values[0],
    )
    if not trials:
        return "no trial is finished; the same command resumes the search"
    lines = [
        f"{trial.values[0]:.4f}  {study.study_name}-{trial.number}  "
        + " ".join(f"{name}={value}" for name, value in trial.params.items())
        for trial in trials
    ]
    best = f"{study.study_name}-{trials[0].number}"
    return "\n".join([*lines, f"best: {best}; to promote it: make promote EXP={best}"])


if __name__ == "__main__":
    run_stage(main)
