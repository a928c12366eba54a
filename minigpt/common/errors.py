"""Errors caused by user input, printed without a traceback."""


class UserError(Exception):
    """A wrong file, parameter or option: one line that names it, the problem and what to do.

    Commands print the message and exit with a code other than 0. Any other exception is a bug and
    keeps its traceback.
    """
