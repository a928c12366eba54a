"""Text for a terminal, which would execute some characters instead of showing them."""

import re
from collections.abc import Sequence
from typing import Literal, get_args

Normalization = Literal["NFC", "NFD", "NFKC", "NFKD", "none"]
NORMALIZATION_FORMS: tuple[Normalization, ...] = get_args(Normalization)

# C0 and C1 control characters but tab and line feed, and those that turn the direction of writing
EXECUTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """`text` with all that a terminal would execute written as an escape.

    >>> visible("\\x1b[2J")
    '\\\\x1b[2J'
    """
    return EXECUTED.sub(lambda match: repr(match[0])[1:-1], text)


def printable(characters: Sequence[str]) -> str:
    """Characters for a message: quoted, control characters escaped."""
    return ", ".join(repr(character) for character in characters)
