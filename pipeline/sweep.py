"""`make sweep`: a search for better parameters, in which each trial is an experiment of DVC's and a run of MLflow's.

    python -m pipeline.sweep                                                   a small search, as below
    python -m pipeline.sweep train.learning_rate=3e-4..1e-2 model.num_layers=2,4,6 --trials 20 --name deeper

A range is searched by its logarithm; values with commas are tried as they are. Ctrl-C stops the search, and the
same command goes on with it: the trials that are finished are kept, and one that was interrupted goes on.
"""

import argparse
import json
import logging
import os
import re
import signal
import subprocess
from collections.abc import Mapping

import optuna

from minigpt.errors import UserError
from pipeline import project, run_stage
from pipeline.history import made_by

log = logging.getLogger(__name__)
SPACE = ["train.learning_rate=1e-3..1e-2", "model.num_layers=2,4,6"]
Space = Mapping[str, optuna.distributions.BaseDistribution]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.sweep", description="Search for better parameters.")
    parser.add_argument("space", nargs="*", help=f"such as: {' '.join(SPACE)} (the default)")
    parser.add_argument("--trials", type=int, default=10, help="how many, those before an interruption included")
    parser.add_argument("--name", default="sweep", help="of the search; its experiments are <name>-0, <name>-1, …")
    arguments = parser.parse_intermixed_args()
    if not re.fullmatch(r"[A-Za-z][\w-]*", arguments.name):
        raise UserError(f"--name: {arguments.name!r} is no name of a branch; use letters, digits, - and _")
    if arguments.trials < 1:
        raise UserError(f"--trials: must be 1 or more, but it is {arguments.trials}")
    space = parse_space(arguments.space or SPACE)
    study = _study(arguments.name, space)
    try:
        while (todo := arguments.trials - len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))) > 0:
            log.info("%d trials to go", todo)
            _run_trial(study, space)
    finally:
        print(summary(study))


def parse_space(texts: list[str]) -> Space:
    """{"train.learning_rate": a distribution, …} of ["train.learning_rate=1e-4..1e-2", …].

    Raises:
        UserError: a text is neither a range of positive numbers nor a list of values.
    """
    space: dict[str, optuna.distributions.BaseDistribution] = {}
    for text in texts:
        name, _, values = text.partition("=")
        if not name or not values:
            raise UserError(f"{text}: must be like train.learning_rate=1e-4..1e-2 or model.num_layers=2,4,6")
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
        raise UserError(f"{text}: a range goes from a positive number to a greater one") from None


def _study(name: str, space: Space) -> optuna.Study:
    """The search of that name; one that was interrupted goes on."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = project.root() / ".minigpt"
    folder.mkdir(exist_ok=True)
    study = optuna.create_study(
        study_name=name,
        storage=f"sqlite:///{folder / 'sweeps.db'}",
        load_if_exists=True,
    )
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))  # not the same guesses again
    described = {parameter: optuna.distributions.distribution_to_json(values) for parameter, values in space.items()}
    if study.user_attrs.get("space", described) != described:
        raise UserError(f"--name: the search {name!r} has another space; give the new one another name")
    study.set_user_attr("space", described)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):  # it was killed
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _run_trial(study: optuna.Study, space: Space) -> None:
    trial = study.ask(dict(space))
    name = f"{study.study_name}-{trial.number}"
    settings = [f"{parameter}={value}" for parameter, value in trial.params.items()]
    log.info("%s: %s", name, " ".join(settings))
    command = ["dvc", "exp", "run", "--temp", "--name", name, *(f"--set-param={text}" for text in settings)]
    process = subprocess.Popen(command, process_group=0)
    try:
        code = process.wait()
    except BaseException:  # the trial stays open, and the next call takes it up
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        raise
    if code:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise UserError(f"{name}: failed, as is said above; the same command goes on with the next trial")
    loss = json.loads(made_by(name).read(project.EVALUATION))["loss"]
    study.tell(trial, loss)
    log.info("%s: validation loss %.4f", name, loss)


def summary(study: optuna.Study) -> str:
    """The finished trials, the best first, and how to promote that."""
    trials = sorted(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)), key=lambda trial: trial.values[0])
    if not trials:
        return "no trial is finished; the same command goes on"
    lines = [
        f"{trial.values[0]:.4f}  {study.study_name}-{trial.number}  "
        + " ".join(f"{name}={value}" for name, value in trial.params.items())
        for trial in trials
    ]
    best = f"{study.study_name}-{trials[0].number}"
    return "\n".join([*lines, f"best: {best}; to promote it: make promote EXP={best}"])


if __name__ == "__main__":
    run_stage(main)
