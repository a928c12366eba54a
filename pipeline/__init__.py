"""The stages of dvc.yaml, one file each: read params.yaml, call minigpt, write outs."""

import errno
import importlib.util
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path

if not all(map(importlib.util.find_spec, ("filelock", "pandas", "pydantic", "ruamel", "torch"))):
    sys.exit(
        f"{sys.executable} lacks MiniGPT's packages; run `make setup`, then `source .venv/bin/activate` and try again"
    )

from minigpt.errors import UserError

# what is wrong with a file that no stage can mend
HINTS = {
    errno.ENOSPC: "the disk is full; make room and try again",
    errno.EACCES: "permission denied; let this user read and write it, and try again",
    errno.EROFS: "cannot be written, the disk is read-only; put the project elsewhere",
    errno.ENOTDIR: "a file is where a folder should be; move it away and try again",
}


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage: log to stderr; a mistake of the user's is one line and exit code 1.

    SIGTERM becomes an exception, so that what has to be closed is closed.
    """
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for ours in ("__main__", "minigpt", "pipeline"):
        logging.getLogger(ours).setLevel(logging.INFO)
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
    except OSError as error:
        if error.errno not in HINTS:
            raise
        sys.exit(f"{error.filename or Path.cwd()}: {HINTS[error.errno]}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
