"""Figures as text, for a terminal: panels of curves, and heatmaps whose cells are shades.

What is drawn is read from the figure, so that each kind looks as in a file: with its panels,
curves, colours and markers, but without bands and error bars.
"""

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import zip_longest
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import ScalarFormatter
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.style import Style
from rich.text import Text

from memtool.figures import colors
from memtool.figures.letters import drawable
from memtool.tables import shade

LINES = 13  # of a panel of curves
NARROWEST = 36  # characters, of such a panel
MARKERS = dict(zip(f"{colors.MARKERS}.", "●■▲◆▼★✖⬟◀▶⬢•", strict=True))
OPEN = dict(zip(colors.MARKERS, "○□△◇▽☆✕⬠◁▷⬡", strict=True))
PATHS = {"-": "·", ":": "┈"}
DASHED, RULE = "-", "┊"
SHADES = " ░▒▓█"
DARKEST = 0.2  # luminance of colours that a black terminal shows

Cell = tuple[str, Style]
EMPTY: Cell = (" ", Style())


def as_text(figure: Figure, width: int | None = None, styled: bool = False) -> str:
    """A figure as lines of text, `width` characters wide (the terminal's own by default).

    If `styled`, curves have their colours and heatmaps are coloured, unless NO_COLOR is set.
    """
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=styled, highlight=False, markup=False, emoji=False
    )
    has_colors = styled and console.color_system is not None and not console.no_color
    for line in _lines(figure, max(console.width, NARROWEST), has_colors):
        console.print(line, no_wrap=True, overflow="crop")
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _lines(figure: Figure, width: int, has_colors: bool) -> Iterator[Text]:
    panels = [axes for axes in figure.axes if axes.lines or axes.images]
    panels = [axes for axes in panels if not str(axes.get_label()).startswith("<colorbar")]
    are_heatmaps = any(axes.images for axes in panels)
    yield from _titles(figure, [] if are_heatmaps else panels, width)
    number = 1 if are_heatmaps else max(1, min(len(panels), width // NARROWEST))
    for first in range(0, len(panels), number):
        beside = [
            list(_panel(axes, width // number - 2, has_colors))
            for axes in panels[first : first + number]
        ]
        yield from [Text("")] if first else []
        for parts in zip_longest(*beside, fillvalue=Text("")):
            yield _side_by_side(parts, width // number)
    legend = list(_legend(figure, width))
    yield from [Text(""), *legend] if legend else []


def _titles(figure: Figure, panels: Sequence[Axes], width: int) -> Iterator[Text]:
    """The title of the figure, and what its axes are."""
    labels = figure.get_supylabel(), figure.get_supxlabel()
    for title in (one.get_text() for one in figure.texts):
        yield from _wrapped(title, width) if title not in labels else ()
    for axes in panels[:1]:
        y, x = labels[0] or axes.get_ylabel(), labels[1] or axes.get_xlabel()
        yield Text(f"{y + ', by ' if y else 'by '}{x}")


def _side_by_side(parts: Sequence[Text], width: int) -> Text:
    line = Text()
    for part in parts:
        line.append_text(part)
        line.append(" " * (width - cell_len(part.plain)))
    return line


def _panel(axes: Axes, width: int, has_colors: bool) -> Iterator[Text]:
    if axes.get_title() and (title := drawable(str(axes.get_label()))):
        yield Text(set_cell_size(title, min(width, cell_len(title))), "bold")
    yield from _heatmap(axes, width, has_colors) if axes.images else _curves(axes, width)


def _curves(axes: Axes, width: int) -> Iterator[Text]:
    """The lines of a panel of curves, its scales left and below."""
    low, high = axes.get_ylim()
    ticks = zip(axes.get_yticks(), _tick_names(axes.yaxis), strict=True)
    scale = {round((high - y) / (high - low) * (LINES - 1)): name for y, name in ticks}
    margin = max(map(len, scale.values()), default=0)
    grid = _grid(axes, width - margin - 1)
    for number, cells in enumerate(grid):
        line = Text(f"{scale.get(number, ''):>{margin}}│")
        for letter, style in cells:
            line.append(letter, style)
        yield line
    yield Text(" " * margin + "└" + "─" * (width - margin - 1))
    yield Text(" " * (margin + 1) + _names_below(axes, width - margin - 1))


def _grid(axes: Axes, columns: int) -> list[list[Cell]]:
    """The curves of a panel in lines of cells: their paths, then their markers."""
    cells = [[EMPTY] * columns for _ in range(LINES)]
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()

    def put(xs: Sequence[float], ys: Sequence[float], cell: Cell, over: bool) -> None:
        for x, y in zip(xs, ys, strict=True):
            column = round((x - left) / (right - left) * (columns - 1))
            line = round((high - y) / (high - low) * (LINES - 1))
            if 0 <= column < columns and 0 <= line < LINES:
                if over or cells[line][column] == EMPTY:
                    cells[line][column] = cell

    for line in axes.lines:
        xs, ys = _points(line, axes)
        if line.get_linestyle() not in ("None", "none", "") and xs:
            steps = np.arange(len(xs))
            dense = np.linspace(0, len(xs) - 1, 4 * columns)
            path = [np.interp(dense, steps, values).tolist() for values in (xs, ys)]
            put(path[0], path[1], (_path(line), _style(line)), over=False)
    for line in axes.lines:
        if marker := _marker(line):
            xs, ys = _points(line, axes)
            at = line.get_markevery()
            chosen = at if isinstance(at, list) else range(len(xs))
            put([xs[i] for i in chosen], [ys[i] for i in chosen], (marker, _style(line)), over=True)
    return cells


def _points(line: Line2D, axes: Axes) -> tuple[list[float], list[float]]:
    """The points of a curve; of a line across the panel, those at its ends."""
    xs, ys = _data(line)
    if line.get_transform() == axes.get_yaxis_transform():
        return list(axes.get_xlim()), ys
    if line.get_transform() == axes.get_xaxis_transform():
        return xs, list(axes.get_ylim())
    return xs, ys


def _data(line: Line2D) -> tuple[list[float], list[float]]:
    data: Any = line.get_data(orig=False)
    xs, ys = ([float(value) for value in values] for values in data)
    return xs, ys


def _marker(line: Line2D) -> str | None:
    """The letter for the marker of a line, if it has one."""
    letters = OPEN if line.get_markerfacecolor() == "white" else MARKERS
    return letters.get(str(line.get_marker()))


def _path(line: Line2D) -> str:
    xs, _ = _data(line)
    if len(xs) == 2 and xs[0] == xs[1]:
        return RULE
    return PATHS.get(str(line.get_linestyle()), DASHED)


def _style(line: Line2D) -> Style:
    """The colour of a line; none if it is too dark for a black terminal."""
    red, green, blue = to_rgb(line.get_color())
    if 0.2126 * red + 0.7152 * green + 0.0722 * blue < DARKEST:
        return Style()
    return Style(color="#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue)))


def _names_below(axes: Axes, width: int) -> str:
    """The names of ticks, where they are and have room."""
    left, right = axes.get_xlim()
    line = ""
    for place, name in zip(axes.get_xticks(), _tick_names(axes.xaxis), strict=True):
        start = round((place - left) / (right - left) * (width - 1)) - len(name) // 2
        start = min(max(start, 0), width - len(name))
        if left <= place <= right and start >= (len(line) + 1 if line else 0):
            line = f"{line:{start}}{name}"
    return line


def _tick_names(axis: Axis) -> list[str]:
    formatter = copy(axis.get_major_formatter())
    if isinstance(formatter, ScalarFormatter):  # whose factor or offset would stand elsewhere
        formatter.set_scientific(False)
        formatter.set_useOffset(False)
    names = formatter.format_ticks(list(axis.get_majorticklocs()))
    return [name.replace("\n", " ") for name in names]


def _heatmap(axes: Axes, width: int, has_colors: bool) -> Iterator[Text]:
    """A line per layer, the first at the bottom, with a cell for each layer of the reference."""
    values: Any = np.ma.filled(np.ma.asarray(axes.images[0].get_array(), float), np.nan)
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    names = {round(place): label.get_text() for place, label in ticks}
    margin = min(max(map(cell_len, names.values()), default=0), width // 2)
    columns = values.shape[1]
    shown = min(columns, width - margin - 1)
    size = min(4, (width - margin - 1) // shown)
    for layer in range(len(values) - 1, -1, -1):
        name = names.get(layer, "")
        line = Text(
            " " * (margin - cell_len(name)) + set_cell_size(name, min(margin, cell_len(name))) + " "
        )
        for value in values[layer, :shown]:
            line.append_text(_cell(float(value), size, has_colors))
        yield line
    place = "the first at the left" if shown == columns else f"the first {shown} of {columns}"
    yield from _wrapped(f"lines: {_label(axes.yaxis)}, the first at the bottom", width)
    yield from _wrapped(f"columns: {_label(axes.xaxis)}, {place}", width)


def _label(axis: Axis) -> str:
    """The label of an axis, which may be broken into lines."""
    return re.sub(r"(?<=[./])\n", "", axis.get_label_text()).replace("\n", " ")


def _wrapped(text: str, width: int) -> Iterator[Text]:
    yield from map(Text, textwrap.wrap(text, width))


def _cell(value: float, size: int, has_colors: bool) -> Text:
    if np.isnan(value):
        return Text("?" * size)
    if has_colors:
        return Text(" " * size, f"on rgb({','.join(map(str, shade(value)))})")
    return Text(SHADES[min(int(max(value, 0.0) * len(SHADES)), len(SHADES) - 1)] * size)


def _legend(figure: Figure, width: int) -> Iterator[Text]:
    """The legend's title, lines and labels, as many side by side as there is room for."""
    line = Text()
    for part in _legend_parts(figure):
        if line and cell_len(line.plain) + cell_len(part.plain) + 3 > width:
            yield line
            line = Text()
        line.append_text(Text("   ") if line else Text()).append_text(part)
    if line:
        yield line


def _legend_parts(figure: Figure) -> Iterator[Text]:
    for legend in figure.legends:
        if title := legend.get_title().get_text():
            yield Text(f"{title}:")
        for handle in legend.legend_handles:
            if isinstance(handle, Line2D):
                part = Text(f"{_marker(handle) or _path(handle) * 2} ")
                part.stylize(_style(handle))
                yield part.append(str(handle.get_label()), Style())
