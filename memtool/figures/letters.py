"""Letters of any script in figures: fonts that have them, and escapes where no font has.

matplotlib draws a letter that its font lacks as a box, and warns for each. Here a font that is
installed is found for it, or else it is written as its number, such as \\u4e2d, and one warning
names all such letters.
"""

import logging
from collections.abc import Iterable
from functools import cache

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from memtool.errors import printable
from memtool.figures.rows import Rows

logger = logging.getLogger("memtool")

LONGEST = 60  # letters of a name in a figure
REGULAR = (400, "normal", "regular", "book")  # weights of fonts; for others, matplotlib complains


def families(rows: Rows) -> list[str]:
    """The font families for the names in `rows`: those that are set, then others for letters that
    they lack."""
    chosen = list(matplotlib.rcParams["font.family"])
    for letter in _letters(rows):
        if not _has_letter(chosen, letter):
            chosen += [name for name in _others() if _has_letter([name], letter)][:1]
    return chosen


def drawable(name: str) -> str:
    """A name as the fonts that are set can draw it, shortened to its end.

    >>> drawable("layer\\n1")
    'layer\\\\n1'
    """
    return with_escapes(name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}")


def with_escapes(text: str) -> str:
    """A text with escapes for the letters that the fonts that are set do not have."""
    chosen = tuple(matplotlib.rcParams["font.family"])
    return "".join(c if _has_letter(chosen, c) else _escaped(c) for c in printable(text))


def warn_of_escapes(figure: Figure, rows: Rows) -> None:
    """Warn, in one line, of the letters in names that `drawable` had to escape in the figure."""
    chosen = tuple(matplotlib.rcParams["font.family"])
    missing = [letter for letter in _letters(rows) if not _has_letter(chosen, letter)]
    shown = "".join(text.get_text() for text in figure.findobj(Text)) if missing else ""
    if lacking := [letter for letter in missing if _escaped(letter) in shown]:
        more = ", ..." if len(lacking) > 10 else ""
        logger.warning(
            f"no installed font has {' '.join(lacking[:10])}{more}: the figure shows "
            f"{_escaped(lacking[0])} and the like; install a font for that script, such as one of "
            "Noto"
        )


def _letters(rows: Rows) -> list[str]:
    """The letters beyond ASCII that occur in the rows' names, in order of first appearance."""
    names = dict.fromkeys(cell for row in rows for cell in row.values() if isinstance(cell, str))
    return [c for c in dict.fromkeys(printable("".join(names))) if not c.isascii()]


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def _has_letter(fonts: Iterable[str], letter: str) -> bool:
    return letter.isascii() or any(ord(letter) in _charmap(name) for name in fonts)


@cache
def _charmap(family: str) -> frozenset[int]:
    """The letters of the font that matplotlib takes for a family; none if it cannot be read."""
    try:
        path = font_manager.findfont(
            font_manager.FontProperties(family=[family]), fallback_to_default=False
        )
        return frozenset(font_manager.get_font(path).get_charmap())
    except (ValueError, OSError, RuntimeError):
        return frozenset()


@cache
def _others() -> list[str]:
    """The families that are installed, without matplotlib's own: those are for formulas, and one
    has a box for every letter."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:  # installed after matplotlib made its list
            _add(path)
    own = matplotlib.get_data_path()
    return sorted(
        {
            entry.name
            for entry in font_manager.fontManager.ttflist
            if entry.weight in REGULAR and entry.style == "normal" and entry.stretch == "normal"
            if not entry.fname.startswith(own)
        }
    )


def _add(path: str) -> None:
    try:
        font_manager.fontManager.addfont(path)
    except Exception:  # whatever is wrong with somebody's font
        logger.debug(f"{path}: a font that cannot be read")
