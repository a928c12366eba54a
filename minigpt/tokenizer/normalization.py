"""Unicode normalization of every text, in training and in prompts alike, before it is encoded."""

import re
import unicodedata

from minigpt.common.text import Normalization

# half of a UTF-16 pair, from a JSON escape or an undecodable byte; not a character
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def normalize(text: str, form: Normalization, lowercase: bool = False) -> str:
    """Give each character one spelling (Unicode Standard Annex #15), in lower case if requested.

    "é" can be one code point or two; NFC always makes it one. "none" changes nothing. Lower case
    is that of single letters, as in the library `tokenizers`: Σ is σ at the end of a word, too.
    """
    if lowercase:
        # Normalized before and after: ẖ is one code point, while its capital needs two.
        text = normalize(text, form).replace("Σ", "σ").lower()
    return text if form == "none" else unicodedata.normalize(form, text)
