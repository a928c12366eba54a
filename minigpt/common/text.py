"""Unicode normalization forms, and text made safe to print."""

import re
from typing import Literal, get_args

Normalization = Literal["NFC", "NFD", "NFKC", "NFKD", "none"]
NORMALIZATION_FORMS: tuple[Normalization, ...] = get_args(Normalization)

# C0 and C1 control characters except tab and line feed, and those that change the text direction
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""Escape the characters that a terminal would execute instead of showing.

    >>> visible("\x1b[2J")
    '\\x1b[2J'
    """
    return CONTROL_CHARACTERS.sub(lambda match: repr(match[0])[1:-1], text)
