"""Errors caused by user input, printed in one line without a traceback."""


class UserError(Exception):
    """A wrong file, parameter or option: one line that names it, the problem and what to do.

    Commands print the message and exit with a code other than 0. Any other exception is a bug and
    keeps its traceback.
    """


def one_line(error: Exception) -> str:
    """Return the message of `error` as part of one line."""
    return " ".join(str(error).split())[:200]
