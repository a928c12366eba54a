"""The one exception that is the user's to mend."""


class UserError(Exception):
    """A wrong file, parameter or option: one line that names it, says what is wrong and what to do.

    Commands print it without a traceback and exit with a code other than 0. Any other exception is
    a bug, and keeps its traceback.
    """
