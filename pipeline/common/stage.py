"""Entry point shared by the stages: logging, signals and one-line errors."""

import errno
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from minigpt.common.errors import UserError


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
        if error.errno == errno.ENOSPC:
            sys.exit(f"{error.filename or Path.cwd()}: the disk is full; make room and try again")
        unusable = (errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
        if error.filename is None or error.errno not in unusable:
            raise
        sys.exit(f"{error.filename}: cannot be used ({error.strerror}); mend that and try again")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
