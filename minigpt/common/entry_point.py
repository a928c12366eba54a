"""What the stages, the tools and minigpt-cli share as programs: errors in one line, and Ctrl-C."""

import errno
import io
import os
import signal
import sys
from collections.abc import Callable

from minigpt.common.errors import UserError, one_line

FULL = (errno.ENOSPC, errno.EDQUOT)


def exit_on_interrupt() -> None:
    """Exit at once on Ctrl-C, without a traceback, while packages are imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))


def raise_on_interrupt() -> None:
    """Raise `KeyboardInterrupt` on Ctrl-C from now on, so that temporary files are removed.

    Call this after packages were imported: some of them turn the exception into another one.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_program(main: Callable[[], None], prefix: str = "", unnamed: str = "") -> None:
    """Run `main`, and print an error that the user can fix in one line (exit code 1).

    Any other exception is a bug and keeps its traceback.

    Args:
        main: The whole program.
        prefix: Start of the line.
        unnamed: What cannot be used where an error of the operating system names no file.
    """
    try:
        try:
            main()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, since Python could not report an error later
    except UserError as error:
        sys.exit(f"{prefix}{error}")
    except MemoryError as error:
        detail = f" ({one_line(error)})" if str(error) else ""
        sys.exit(f"{prefix}not enough memory{detail}; use smaller sizes, or free memory")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        if not error.errno:  # not of the operating system
            raise
        sys.stdout = io.StringIO()  # Python would flush what the old one holds, and fail again
        if error.errno == errno.EPIPE:  # the reader of a pipe has ended, such as `head`
            sys.exit(1)
        sys.exit(f"{prefix}{_describe(error, unnamed)}")


def _describe(error: OSError, unnamed: str) -> UserError:
    advice = "make room" if error.errno in FULL else "fix it"
    name, reason = error.filename or unnamed, os.strerror(error.errno or 0)
    return UserError(f"{name}: cannot be used ({reason}); {advice} and try again")
