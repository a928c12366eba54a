"""Labels of figures: text that the fonts can draw."""

import functools
from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

# comes with matplotlib, so a figure that uses no other font is the same on every machine
DEFAULT_FONT = "DejaVu Sans"
CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
)


def installed_fonts() -> list[str]:
    """Return the default font and the installed fonts with Chinese, Japanese or Korean."""
    installed = set(font_manager.get_font_names())
    return [DEFAULT_FONT, *(name for name in CJK_FONTS if name in installed)]


@functools.cache
def _font(name: str) -> FT2Font:
    return font_manager.get_font(font_manager.findfont(name))


def drawable(text: str, fonts: Iterable[str] = (DEFAULT_FONT,)) -> str:
    r"""Replace each character that `fonts` lack by its code point.

    A $ is escaped, since it would start a formula.

    >>> drawable("a 猫")
    'a U+732B'
    """
    files = [_font(name) for name in fonts]
    known = (
        character
        if character.isspace() or any(file.get_char_index(ord(character)) for file in files)
        else f"U+{ord(character):04X}"
        for character in text
    )
    return "".join(known).replace("$", r"\$")
