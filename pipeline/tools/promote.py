"""`make promote`: make an exported model the champion of the MLflow registry, if it is better.

python -m pipeline.tools.promote           the current model
python -m pipeline.tools.promote faster    the model of the DVC experiment or Git revision "faster"
"""

import argparse
from typing import Any

from minigpt.cli.mlflow_store import SHA256_TAG
from minigpt.common.errors import UserError
from pipeline.common import paths
from pipeline.common.stage import run_stage
from pipeline.tracking import store
from pipeline.tracking.history import Snapshot, snapshot_of
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
    with store.user_errors(), store.lock("promote"):
        print(promote(which))


def promote(which: str = "") -> str:
    """Move the alias to the model of a run and return a message.

    Raises:
        UserError: there is no such model, the model was not evaluated and exported, or the champion
            is as good.
    """
    snapshot = snapshot_of(which) if which else Snapshot()
    run = _find(snapshot, which or paths.MODEL.as_posix())
    _check_complete(run, snapshot)
    tags, loss, before = run.data.tags, run.data.metrics[LOSS], ""
    if champion := _champion():
        best = client().get_run(champion.run_id).data
        if tags["model_md5"] == best.tags["model_md5"]:
            return f"{NAME} version {champion.version} is the {ALIAS} already"
        if tags["validation_tokens"] != best.tags["validation_tokens"]:
            raise UserError(
                f"not promoted: the {ALIAS} was measured on another validation split, so the "
                f"losses do not compare; to start over, delete its alias {ALIAS} in `make ui`"
            )
        before = f"{best.metrics[LOSS]:.4f}"
        if loss >= best.metrics[LOSS]:
            raise UserError(
                f"not promoted: the validation loss is {loss:.4f}, that of the {ALIAS} is {before}"
            )
    model = {"model_md5": tags["model_md5"], SHA256_TAG: tags["onnx_sha256"]}
    version = mlflow().register_model(tags["onnx_model"], NAME, tags=model).version
    client().set_registered_model_alias(NAME, ALIAS, version)
    card = tags[store.DESCRIPTION][:5000]  # the limit of the registry
    client().update_model_version(NAME, version, card)
    change = f", before {before}" if before else ""
    return f"{NAME} version {version} is the {ALIAS}: validation loss {loss:.4f}{change}"


def _find(snapshot: Snapshot, name: str) -> Any:
    """Return the run of the model of `snapshot`, which messages call `name`."""
    if not snapshot.model_md5:
        raise UserError(f"{name}: no trained model here; run `dvc repro`")
    run = store.find_model(snapshot.model_md5)
    if run is None:
        raise UserError(f"{name}: the tracking store has no run of this model; run `make sync`")
    return run


def _check_complete(run: Any, snapshot: Snapshot) -> None:
    missing = {"model_md5", "validation_tokens", "onnx_model", "onnx_sha256"} - run.data.tags.keys()
    difference = run.data.metrics.get("export/max_logit_difference")
    if missing or difference is None or LOSS not in run.data.metrics:
        revision = snapshot.revision[:9]
        back = f"`git restore --source={revision} .`, " if revision else ""
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
    for model in client().search_registered_models(f"name = '{NAME}'"):
        if ALIAS in model.aliases:
            return client().get_model_version(NAME, model.aliases[ALIAS])
    return None


if __name__ == "__main__":
    run_stage(main)
