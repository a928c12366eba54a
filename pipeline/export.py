"""Stage 5: export the model to ONNX, checked against the checkpoint."""

import json
import logging

from minigpt.common.config import load_params
from minigpt.common.files import atomic_write
from minigpt.export.export import export
from minigpt.model.checkpoint import load_model
from pipeline.common import paths
from pipeline.common.stage import run_stage
from pipeline.common.threads import use_threads
from pipeline.tracking.run import Run

log = logging.getLogger(__name__)


def main() -> None:
    params = load_params()
    config, threads = params.export, use_threads(params.threads)
    model, metadata = load_model(paths.MODEL)
    with Run() as run:
        data, result = export(model, metadata, config.tolerance, threads)
        atomic_write(paths.ONNX_MODEL, data)
        atomic_write(paths.EXPORT, json.dumps(result, indent=1) + "\n")
        run.report("export", config, [paths.EXPORT, paths.ONNX_MODEL])
    log.info("%s: %.1f MB, equal to the checkpoint", paths.ONNX_MODEL, len(data) / 1e6)


if __name__ == "__main__":
    run_stage(main)
