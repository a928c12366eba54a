"""What is done to every text, in training and in a prompt alike, before it becomes ids."""

import unicodedata
from typing import Literal

Normalization = Literal["NFC", "NFD", "NFKC", "NFKD", "none"]


def normalize(text: str, form: Normalization) -> str:
    """Line ends as LF, and one way of writing each character (Unicode Standard Annex #15).

    "é" can be one code point or two; NFC takes the one. "none" leaves characters as they are.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if form == "none" else unicodedata.normalize(form, text)
