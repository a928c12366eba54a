"""Errors caused by user input, printed in one line without a traceback."""

from minigpt.common.text import visible

MAX_LENGTH = 1000  # characters of a message


class UserError(Exception):
    """A wrong file, parameter or option: one line that names it, the problem and what to do.

    Commands print the message and exit with a code other than 0. Any other exception is a bug and
    keeps its traceback. Messages quote files of unknown origin, so line breaks, control characters
    and excess length are removed here.
    """

    def __init__(self, message: str):
        line = " ".join(visible(message).splitlines())
        if len(line) > MAX_LENGTH:  # the problem is at the start, what to do at the end
            line = f"{line[: MAX_LENGTH // 2]} … {line[3 - MAX_LENGTH // 2 :]}"
        super().__init__(line)


def one_line(error: object) -> str:
    """Return the text of `error` as part of one line."""
    text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())[:200]
