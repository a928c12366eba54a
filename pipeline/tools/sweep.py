"""`make sweep`: search for better parameters; each trial is a DVC experiment and an MLflow run.

    python -m pipeline.tools.sweep             a small search
    python -m pipeline.tools.sweep model.num_layers=2,4,6 --trials 20 --name deeper

A range is searched on a logarithmic scale; values with commas are the choices. Ctrl-C stops the
search, and the same command resumes it: finished trials are kept, and an interrupted one continues.
If the text, the code or another parameter has changed since, the losses cannot be compared, and the
search needs another name.
"""

import argparse
import json
import logging
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial, TrialState

from minigpt.common.config import load_params
from minigpt.common.errors import UserError
from minigpt.common.files import file_digest
from pipeline.common import paths
from pipeline.common.stage import run_stage
from pipeline.tracking.history import snapshot_of
from pipeline.tracking.params import flatten, model_params

log = logging.getLogger(__name__)
SPACE = ["train.learning_rate=1e-3..1e-2", "model.num_layers=2,4,6"]
Space = dict[str, BaseDistribution]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tools.sweep", description="Search for better parameters."
    )
    parser.add_argument("space", nargs="*", help=f"default: {' '.join(SPACE)}")
    parser.add_argument("--trials", type=int, default=10, help="number of trials in all")
    parser.add_argument("--name", default="sweep", help="its experiments are <name>-0, …")
    arguments = parser.parse_intermixed_args()
    name, trials = arguments.name, arguments.trials
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise UserError(
            f"--name: {name!r} cannot be part of a branch name; use letters, digits, - and _"
        )
    if trials < 1:
        raise UserError(f"--trials: must be 1 or more, but it is {trials}")
    space = parse_space(arguments.space or SPACE)
    folder = paths.root() / ".minigpt" / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f"{name}.lock", blocking=False):
            _search(_open_study(folder, name), space, trials)
    except Timeout:
        raise UserError(
            f"--name: another process runs the search {name!r}; choose another name"
        ) from None


def _search(study: optuna.Study, space: Space, trials: int) -> None:
    _check_facts(study, space)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # was killed
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    try:
        while (todo := trials - len(_finished(study))) > 0:
            _check_facts(study, space)  # a search takes hours, in which files may change
            log.info("%d trials left", todo)
            _run_trial(study, space)
    finally:
        print(summary(study))


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    """Return the finished trials, the best first."""
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    return sorted(trials, key=lambda trial: trial.values[0])


def parse_space(texts: list[str]) -> Space:
    """["train.learning_rate=1e-4..1e-2", …] → {"train.learning_rate": a distribution, …}.

    Raises:
        UserError: a text is neither a range of positive numbers nor a list of values.
    """
    space: Space = {}
    for text in texts:
        name, _, values = text.partition("=")
        if not name or not values:
            raise UserError(f"{text}: must be like {SPACE[0]} or {SPACE[1]}")
        low, dots, high = values.partition("..")
        space[name] = _range(text, low, high) if dots else CategoricalDistribution(low.split(","))
    return space


def _range(text: str, low: str, high: str) -> BaseDistribution:
    try:
        if low.isdecimal() and high.isdecimal():
            return IntDistribution(int(low), int(high), log=True)
        return FloatDistribution(float(low), float(high), log=True)
    except ValueError:
        raise UserError(
            f"{text}: a range must go from a positive number to a greater one"
        ) from None


def _open_study(folder: Path, name: str) -> optuna.Study:
    """Create the search with this name, or open an interrupted one."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=name, storage=f"sqlite:///{folder / name}.db", load_if_exists=True
    )
    # the seed differs from that of an interrupted search, so that other parameters are tried
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
    return study


def _check_facts(study: optuna.Study, space: Space) -> None:
    facts = _facts(space)
    before = study.user_attrs.get("facts", facts)
    if differing := sorted(name for name in facts if facts[name] != before.get(name, facts[name])):
        reason = f"{study.study_name!r} was started with another {', '.join(differing)}"
        raise UserError(f"--name: {reason}; choose another name")
    study.set_user_attr("facts", facts)


def _facts(space: Space) -> dict[str, Any]:
    """Return what the losses depend on: space, text, code and the fixed parameters, by name."""
    params = model_params(flatten(load_params().model_dump()))
    texts = [Path(params[name]) for name in ("data.path", "train.init_from")]
    files = sorted(file for text in texts for file in (text, *text.rglob("*")) if file.is_file())
    stages = ("build_vocab", "prepare", "train", "evaluate")
    return {
        "space": {name: distribution_to_json(values) for name, values in space.items()},
        "text": [file_digest(file, "md5") for file in files],
        "code": [paths.code_sha256(stage) for stage in stages],
        **{name: value for name, value in params.items() if name not in space},
    }


def _run_trial(study: optuna.Study, space: Space) -> None:
    trial = study.ask(space)
    name = f"{study.study_name}-{trial.number}"
    settings = [f"{parameter}={value}" for parameter, value in trial.params.items()]
    log.info("%s: %s", name, " ".join(settings))
    command = ["dvc", "exp", "run", "--temp", "--name", name]
    command += [f"--set-param={setting}" for setting in settings]
    process = subprocess.Popen(command, process_group=0)
    try:
        code = process.wait()
    except BaseException:  # the trial stays open, and the next call continues it
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        raise
    if code:
        study.tell(trial, state=TrialState.FAIL)
        raise UserError(
            f"{name}: failed (see above); the same command continues with the next trial"
        )
    loss = json.loads(snapshot_of(name).read(paths.EVALUATION))["loss"]
    study.tell(trial, loss)
    log.info("%s: validation loss %.4f", name, loss)


def summary(study: optuna.Study) -> str:
    """Return a table of the finished trials, the best first, and how to promote the best."""
    trials = _finished(study)
    if not trials:
        return "no trial is finished; the same command resumes the search"
    lines = []
    for trial in trials:
        settings = " ".join(f"{name}={value}" for name, value in trial.params.items())
        lines.append(f"{trial.values[0]:.4f}  {study.study_name}-{trial.number}  {settings}")
    best = f"{study.study_name}-{trials[0].number}"
    return "\n".join([*lines, f"best: {best}; to promote it: make promote EXP={best}"])


if __name__ == "__main__":
    run_stage(main)
