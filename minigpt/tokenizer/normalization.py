"""What is done to every text, in training and in a prompt alike, before it becomes ids."""

import re
import unicodedata

from minigpt.common.text import Normalization

# half of a UTF-16 pair, from a JSON escape or a byte of the command line that is no UTF-8; has no bytes
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def normalize(text: str, form: Normalization, lowercase: bool = False) -> str:
    """One way of writing each character (Unicode Standard Annex #15), in lower case if asked.

    "é" can be one code point or two; NFC takes the one. "none" leaves everything as it is.
    """
    if lowercase:
        # a small letter can have a code point where its capital needs two (ẖ), so the form comes once more
        text = normalize(text, form).lower()
    return text if form == "none" else unicodedata.normalize(form, text)
