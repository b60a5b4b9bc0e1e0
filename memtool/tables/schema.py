"""How a table is declared: columns, the types of their cells, and what a cell may be."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any, cast, get_args, get_type_hints

from memtool.errors import shortened


@dataclass(frozen=True)
class Column:
    """The meaning of a column, with its unit or range.

    On a terminal too narrow for a table, columns with the largest `minor` are left out first, and
    columns with 0 never. The cells of a `shaded` column, numbers in [0, 1], are coloured by value.
    """

    meaning: str
    minor: int = 0
    shaded: bool = False


@cache
def columns(row_type: type) -> dict[str, Column]:
    """The columns of a table by name, in order.

    >>> from memtool.tables import LayerRow
    >>> list(columns(LayerRow))
    ['checkpoint', 'layer', 'type', 'shape', 'cut', 'same_as']
    """
    hints = get_type_hints(row_type, include_extras=True)
    return {name: get_args(hint)[1] for name, hint in hints.items()}


def type_of(row_type: type, column: str) -> str:
    """The type of a column's cells, in words; they may be empty where the meaning says so.

    >>> from memtool.tables import LayerRow
    >>> type_of(LayerRow, "cut")
    'true or false'
    """
    return WORDS[cell_types(row_type)[column]]


WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


@cache
def cell_types(row_type: type) -> dict[str, type]:
    """The type of each column's cells: str, int, float or bool."""

    def not_none(hint: Any) -> type:
        (found,) = [part for part in get_args(hint) or (hint,) if part is not type(None)]
        return cast(type, found)

    return {column: not_none(hint) for column, hint in get_type_hints(row_type).items()}


@cache
def is_name(row_type: type, column: str) -> bool:
    """Whether the column is text that no row lacks, since it names what the row is about.

    >>> from memtool.tables import LayerRow
    >>> is_name(LayerRow, "layer"), is_name(LayerRow, "same_as"), is_name(LayerRow, "cut")
    (True, False, False)
    """
    return get_type_hints(row_type)[column] is str


LARGEST = 1e30  # of numbers: float32 holds them, in the units of pixels too; a figure draws them
FRACTIONS = ("noise_ratio", "accuracy")  # how the names of columns end whose numbers are in [0, 1]
ROUNDING = 1e-9  # as far as a mean of ones may lie above 1
LONGEST = 5000  # letters; names are paths, or model specs of stitched models


def checked(row_type: type, column: str, cell: Any) -> Any:
    """A cell as the column declares it: str, int, float or bool; None if it is empty.

    Numbers may be text, and numbers of NumPy; NaN is an empty cell, and so are the texts `nan` and
    `NA`, but in a column of names. Raises ValueError, which tells the cell in short, for anything
    else, and for a noise ratio or an accuracy outside [0, 1].

    >>> from memtool.tables import CkaRow, LayerRow
    >>> checked(LayerRow, "layer", 3), checked(CkaRow, "epoch", "4.0")
    ('3', 4)
    >>> checked(CkaRow, "cka", "n/a")
    Traceback (most recent call last):
    ValueError: 'n/a' is no number
    """
    cell_type = cell_types(row_type)[column]
    nothing = ("",) if is_name(row_type, column) else ("", "nan", "na")
    if cell is None or isinstance(cell, float) and math.isnan(cell):
        return None
    if isinstance(cell, str) and cell.strip().lower() in nothing:
        return None
    try:
        value = CHECKS[cell_type](cell)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{shortened(repr(cell))} is no {WORDS[cell_type]}{error}") from error
    if column.endswith(FRACTIONS) and value is not None and not 0 <= value <= 1 + ROUNDING:
        hint = "; divide percent by 100" if 1 < value <= 100 else ""
        raise ValueError(f"{value:g} is outside [0, 1]{hint}")
    return value


# The usual types come first: whether one is registered takes ten times as long to find.
NUMBERS = (float, int, Real)
PLAIN_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def _number(cell: Any) -> int | float | None:
    if isinstance(cell, str):
        cell = cell.strip()
        if not PLAIN_NUMBER.fullmatch(cell):
            comma = PLAIN_NUMBER.fullmatch(cell.replace(",", ".", 1))
            raise ValueError(
                "; a decimal comma needs semicolons or tabs between cells" if comma else ""
            )
    elif isinstance(cell, bool) or not isinstance(cell, NUMBERS):
        raise ValueError("")
    value = float(cell)
    if math.isnan(value):
        return None
    if abs(value) > LARGEST:
        raise ValueError(f" up to {LARGEST:g}")
    return value if isinstance(cell, float) or not isinstance(cell, Integral) else int(cell)


def _whole_number(cell: Any) -> int | None:
    value = _number(cell)
    if value is None or value == int(value):
        return None if value is None else int(value)
    raise ValueError("")


def _text(cell: Any) -> str:
    if isinstance(cell, bool) or not isinstance(cell, str | Real):
        raise ValueError("")
    if len(text := str(cell)) > LONGEST:
        raise ValueError(f" of at most {LONGEST} letters")
    return text


def _truth(cell: Any) -> bool:
    if str(cell).lower() not in ("true", "false"):
        raise ValueError("")
    return str(cell).lower() == "true"


CHECKS: dict[type, Callable[[Any], Any]] = {
    str: _text,
    int: _whole_number,
    float: _number,
    bool: _truth,
}
