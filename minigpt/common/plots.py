"""Labels of figures: text that the font can draw."""

import functools

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font


@functools.cache
def _font() -> FT2Font:
    # the default font comes with matplotlib, so figures are the same on every machine
    return font_manager.get_font(font_manager.findfont("DejaVu Sans"))


def drawable(text: str) -> str:
    r"""Replace each character that the font lacks, such as a Chinese one, by its code point.

    A $ is escaped, since it would start a formula.

    >>> drawable("a 猫")
    'a U+732B'
    """
    known = (
        character
        if character.isspace() or _font().get_char_index(ord(character))
        else f"U+{ord(character):04X}"
        for character in text
    )
    return "".join(known).replace("$", r"\$")
