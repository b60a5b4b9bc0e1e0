"""Rows as a table for a terminal."""

import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from memtool.errors import printable
from memtool.tables.schema import Column

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

Row = Mapping[str, Any]
# Of values 0, .25, .5, .75 and 1: the colour map of the heatmaps, magma, at five places.
SHADES = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))
LIGHT = 0.6  # the value beyond which letters on a shade are black


def cell(value: Any) -> str:
    """A value as text, at full precision; empty for None."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def render(
    rows: Sequence[Row],
    columns: Mapping[str, Column],
    width: int | None = None,
    styled: bool = False,
    encoding: str = "utf-8",
) -> str:
    """Rows as a table for a terminal, `width` characters wide (the terminal's own by default).

    If `styled`, titles are bold, and shaded columns coloured unless NO_COLOR is set. Letters that
    `encoding` lacks, and controls, are escaped.

    Numbers have four digits and checkpoints lose their suffix. A column that holds one value
    throughout is told once, above the table. Where it would be too wide, minor columns are left
    out, which is told below it. A single row becomes a list, one line for each of its values.
    """
    if len(rows) == 1:
        return _encodable(_list(rows[0], columns), encoding)
    from rich.console import Console

    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=styled,
        highlight=False,
        markup=False,
        emoji=False,
    )
    cells = {
        column: [_encodable(_short(row.get(column)), encoding) for row in rows]
        for column in columns
    }
    constant = [column for column in columns if len(set(cells[column])) == 1]
    if told := [f"{_title(name)} {cells[name][0]}" for name in constant if cells[name][0]]:
        console.print(", ".join(told) + "\n")
    shown = [column for column in columns if column not in constant]
    if cells.get("layer") == cells.get("reference_layer"):
        shown = [column for column in shown if column != "reference_layer"]
    left_out = []
    minor = [name for name in shown if columns[name].minor]
    for column in sorted(minor, key=lambda name: -columns[name].minor):
        if _width(shown, cells) > console.width:
            shown.remove(column)
            left_out.append(_title(column))
    console.print(_grid(rows, {name: columns[name] for name in shown}, cells, console.width))
    if left_out:
        console.print(f"\n(not shown for want of width: {', '.join(left_out)})")
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _grid(
    rows: Sequence[Row],
    columns: Mapping[str, Column],
    cells: Mapping[str, Sequence[str]],
    most: int,
) -> "Table":
    """The cells of these columns, each at most half of `most` characters wide."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    lines: list[Sequence[str | Text]] = []
    for name, column in columns.items():
        values = [row.get(name) for row in rows]
        width = min(_widest(name, cells), most // 2)
        is_number = all(isinstance(value, int | float | None) for value in values)
        justify: Any = "right" if is_number else "left"
        table.add_column(_title(name), justify=justify, width=width, overflow="fold")
        if column.shaded and is_number:
            shown = zip(cells[name], values, strict=True)
            lines.append([_shaded(text.rjust(width), value) for text, value in shown])
        else:
            lines.append(cells[name])
    for line in zip(*lines, strict=True):
        table.add_row(*line)
    return table


def _shaded(text: str, value: float | None) -> "Text":
    """The text on the shade of a value; one beyond [0, 1] has the shade of the nearer end."""
    from rich.text import Text

    if value is None:
        return Text(text)
    letters = "#000000" if value > LIGHT else "#ffffff"
    return Text(text, f"{letters} on rgb({','.join(map(str, shade(value)))})")


def shade(value: float) -> tuple[int, ...]:
    """Red, green and blue, 0 to 255, of a value in [0, 1].

    >>> shade(0.25), shade(0.375), shade(7)
    ((81, 18, 124), (132, 36, 122), (252, 253, 191))
    """
    place = min(max(value, 0.0), 1.0) * (len(SHADES) - 1)
    at = min(int(place), len(SHADES) - 2)
    low, high = list(pairwise(SHADES))[at]
    return tuple(round(a + (b - a) * (place - at)) for a, b in zip(low, high, strict=True))


def _encodable(text: str, encoding: str) -> str:
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _list(row: Row, columns: Iterable[str]) -> str:
    """The values of one row, those that are not empty, each below the other."""
    values = {_title(column): _whole(row.get(column)) for column in columns}
    width = max(map(len, values), default=0)
    return "".join(f"{title:{width}}  {value}\n" for title, value in values.items() if value)


def _title(column: str) -> str:
    return column.replace("_", " ")


def _widest(column: str, cells: Mapping[str, Sequence[str]]) -> int:
    """The least width of a column that breaks neither a cell nor a word of its title."""
    from rich.cells import cell_len  # Chinese characters, for one, are two cells wide

    return max(map(cell_len, [*cells[column], *column.split("_")]))


def _width(columns: Sequence[str], cells: Mapping[str, Sequence[str]]) -> int:
    return sum(_widest(column, cells) + 2 for column in columns) - 2


def _whole(value: Any) -> str:
    """A value with room enough: only numbers are shortened."""
    return _short(value) if isinstance(value, bool | float) else printable(cell(value))


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-4 <= abs(value) < 1e4 and value % 1 else f"{value:.4g}"
    return printable(cell(value).removesuffix(".safetensors"))
