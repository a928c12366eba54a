"""The stages of dvc.yaml, one file each: read params.yaml, call minigpt, write outs."""

import importlib.util
import logging
import sys
from collections.abc import Callable

if importlib.util.find_spec("pydantic") is None:
    sys.exit(
        f"{sys.executable} lacks MiniGPT's packages; run `make setup`, then `source .venv/bin/activate` and try again"
    )

from minigpt.errors import UserError


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage: log to stderr; a mistake of the user's is one line and exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for ours in ("__main__", "minigpt", "pipeline"):
        logging.getLogger(ours).setLevel(logging.INFO)
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
