"""Unicode normalization forms, and text made safe to print."""

import re
from typing import Literal, get_args

Normalization = Literal["NFC", "NFD", "NFKC", "NFKD", "none"]
NORMALIZATION_FORMS: tuple[Normalization, ...] = get_args(Normalization)

# C0 and C1 control characters except tab and line feed, and those that change the text direction
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def fenced(text: str) -> str:
    r"""Return `text` as a block of code in Markdown, whatever it contains.

    >>> fenced("a")
    '```text\na\n```'
    """
    fence = "`" * max(3, _longest_backticks(text) + 1)
    return f"{fence}text\n{text}\n{fence}"


def inline_code(text: str) -> str:
    r"""Return `text` as code within a line of Markdown; white space becomes single spaces.

    >>> inline_code("a\nb"), inline_code("`")
    ('`a b`', '`` ` ``')
    """
    longest = _longest_backticks(text)
    mark, space = "`" * (longest + 1), " " * (longest > 0)
    return f"{mark}{space}{' '.join(text.split())}{space}{mark}"


def _longest_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def visible(text: str) -> str:
    r"""Escape the characters that a terminal would execute instead of showing.

    >>> visible("\x1b[2J")
    '\\x1b[2J'
    """
    return CONTROL_CHARACTERS.sub(lambda match: repr(match[0])[1:-1], text)
