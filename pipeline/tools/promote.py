"""`make promote`: make an exported model the champion of the MLflow registry, if it is better.

python -m pipeline.tools.promote           the current model
python -m pipeline.tools.promote faster    the model of the DVC experiment or Git revision "faster"
"""

import argparse
from typing import Any

from minigpt.common.errors import UserError
from minigpt.common.files import file_digest
from pipeline.common import paths
from pipeline.common.stage import run_stage
from pipeline.tracking import store
from pipeline.tracking.history import snapshot_of
from pipeline.tracking.store import client, mlflow

NAME = "minigpt"
ALIAS = "champion"
LOSS = "evaluation/loss"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tools.promote", description="Promote a model to champion."
    )
    parser.add_argument("which", nargs="?", default="", help="a DVC experiment or a Git revision")
    which = parser.parse_args().which
    try:
        print(promote(which))
    except UserError:
        raise
    except Exception as error:  # any failure of the store
        raise UserError(f"cannot use the tracking store: {store.reason(error)}") from None


def promote(which: str = "") -> str:
    """Move the alias to the model of a run and return a message.

    Raises:
        UserError: there is no such model, the model was not evaluated and exported, or the champion
            is as good.
    """
    run = _find(which)
    _check_complete(run, which)
    champion = _champion()
    loss = run.data.metrics[LOSS]
    before = ""
    if champion is not None:
        best = client().get_run(champion.run_id)
        if run.data.tags["model_md5"] == best.data.tags["model_md5"]:
            return f"{NAME} version {champion.version} is the {ALIAS} already"
        if run.data.tags["validation_tokens"] != best.data.tags["validation_tokens"]:
            raise UserError(
                f"not promoted: the {ALIAS} was measured on another validation split, so the "
                f"losses do not compare; to start over, delete its alias {ALIAS} in `make ui`"
            )
        if loss >= best.data.metrics[LOSS]:
            raise UserError(
                f"not promoted: the validation loss is {loss:.4f}, that of the {ALIAS} is "
                f"{best.data.metrics[LOSS]:.4f}"
            )
        before = f", before {best.data.metrics[LOSS]:.4f}"
    version = mlflow().register_model(
        run.data.tags["onnx_model"], NAME, tags={"model_md5": run.data.tags["model_md5"]}
    )
    client().set_registered_model_alias(NAME, ALIAS, version.version)
    client().update_model_version(
        NAME, version.version, run.data.tags[store.DESCRIPTION][:5000]
    )  # the limit of the registry
    return f"{NAME} version {version.version} is the {ALIAS}: validation loss {loss:.4f}{before}"


def _find(which: str) -> Any:
    """Return the run of the current model, or of the model of an experiment or a commit."""
    if which:
        md5 = snapshot_of(which).model_md5
        if not md5:
            raise UserError(f"{which}: its dvc.lock has no trained model")
    elif paths.MODEL.exists():
        md5 = file_digest(paths.MODEL, "md5")
    else:
        raise UserError(f"{paths.MODEL}: not found; run `dvc repro`")
    run = store.find_model(md5)
    if run is None:
        raise UserError(
            f"{which or paths.MODEL}: the tracking store has no run of this model; run `make sync`"
        )
    return run


def _check_complete(run: Any, which: str) -> None:
    missing = {"model_md5", "validation_tokens", "onnx_model"} - run.data.tags.keys()
    difference = run.data.metrics.get("export/max_logit_difference")
    if missing or difference is None or LOSS not in run.data.metrics:
        back = f"`git restore --source={snapshot_of(which).revision[:9]} .`, " if which else ""
        raise UserError(
            f"not promoted: run {run.info.run_name!r} lacks its evaluation or its exported model; "
            f"to restore them, run {back}`dvc repro` and `make sync`"
        )
    if difference > run.data.metrics["export/tolerance"]:
        raise UserError(
            f"not promoted: the logits differ from PyTorch's by {difference:.1e}, which is more "
            "than export.tolerance"
        )


def _champion() -> Any:
    """Return the model version that has the alias, or None."""
    try:
        return client().get_model_version_by_alias(NAME, ALIAS)
    except mlflow().exceptions.MlflowException as error:
        if error.error_code in (
            "RESOURCE_DOES_NOT_EXIST",
            "INVALID_PARAMETER_VALUE",
        ):  # no model, or no alias
            return None
        raise


if __name__ == "__main__":
    run_stage(main)
