"""`make promote`: the exported model becomes the champion of MLflow's registry, if it is the better one.

python -m pipeline.tools.promote           the model that lies here
python -m pipeline.tools.promote faster    that of DVC's experiment "faster", or of a Git revision
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
    parser.add_argument(
        "which", nargs="?", default="", help="an experiment of DVC's or a Git revision"
    )
    which = parser.parse_args().which
    try:
        print(promote(which))
    except UserError:
        raise
    except Exception as error:  # whatever is wrong with the store
        raise UserError(f"the tracking store does not answer: {store.reason(error)}") from None


def promote(which: str = "") -> str:
    """Give the alias to the model of a run (see above); returns a line that says so.

    Raises:
        UserError: there is no such model, it was not evaluated and exported, or the champion is as good.
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
                f"not promoted: the {ALIAS} was measured on another validation split, so that their losses do not "
                f"compare; to begin anew, take the alias {ALIAS} away from it in `make ui`"
            )
        if loss >= best.data.metrics[LOSS]:
            raise UserError(
                f"not promoted: validation loss {loss:.4f}, the {ALIAS}'s is {best.data.metrics[LOSS]:.4f}"
            )
        before = f", before {best.data.metrics[LOSS]:.4f}"
    version = mlflow().register_model(
        run.data.tags["onnx_model"], NAME, tags={"model_md5": run.data.tags["model_md5"]}
    )
    client().set_registered_model_alias(NAME, ALIAS, version.version)
    client().update_model_version(
        NAME, version.version, run.data.tags[store.DESCRIPTION][:5000]
    )  # no more fits
    return f"{NAME} version {version.version} is the {ALIAS}: validation loss {loss:.4f}{before}"


def _find(which: str) -> Any:
    """The run of the model that lies here, or that an experiment or a commit made."""
    if which:
        md5 = snapshot_of(which).model_md5
        if not md5:
            raise UserError(f"{which}: its dvc.lock knows of no trained model")
    elif paths.MODEL.exists():
        md5 = file_digest(paths.MODEL, "md5")
    else:
        raise UserError(f"{paths.MODEL}: not found; run `dvc repro`")
    run = store.find_model(md5)
    if run is None:
        raise UserError(
            f"{which or paths.MODEL}: the tracking store does not know this model; run `make sync`"
        )
    return run


def _check_complete(run: Any, which: str) -> None:
    missing = {"model_md5", "validation_tokens", "onnx_model"} - run.data.tags.keys()
    difference = run.data.metrics.get("export/max_logit_difference")
    if missing or difference is None or LOSS not in run.data.metrics:
        back = f"`git restore --source={snapshot_of(which).revision[:9]} .`, " if which else ""
        raise UserError(
            f"not promoted: run {run.info.run_name!r} lacks its evaluation or its exported model; "
            f"make them again by {back}`dvc repro` and `make sync`"
        )
    if difference > run.data.metrics["export/tolerance"]:
        raise UserError(
            f"not promoted: its logits differ from PyTorch's by {difference:.1e}, more than export.tolerance"
        )


def _champion() -> Any:
    """The model version that has the alias, or None."""
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
