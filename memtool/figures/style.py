"""The look that all figures share: sizes, colours, markers, panels, axes, legend.

Sizes are in inches, those of letters in points. A figure fits a column of the usual two-column
page, or the page.
"""

import math
import re
import textwrap
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, MultipleLocator

from memtool.figures.colors import MARKERS, Style
from memtool.figures.letters import drawable, with_escapes
from memtool.figures.options import NARROWEST, WIDTHS
from memtool.tables import PointRow

Key = TypeVar("Key", bound=Hashable)

NOISE_RATIO = "noise ratio r (%)"
CUT_COLORS = "viridis"
LIGHTEST = 0.8  # position in a colour map; what lies beyond is too light for white paper
MOST_MARKERS = 6  # along a curve

COLUMN_WIDTH, PAGE_WIDTH = WIDTHS["column"], WIDTHS["page"]
HIGHEST = 2.6  # inches, of a panel
LINE_HEIGHT = 0.11  # inches, of a name
LOOK: dict[Any, Any] = {
    # First matplotlib's own, so that nobody's matplotlibrc changes a figure, nor starts LaTeX.
    **{name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"},
    "font.size": 8,
    "figure.labelsize": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "legend.fontsize": 7,
    "legend.title_fontsize": 8,
    "legend.frameon": False,
    "legend.columnspacing": 1.2,
    "text.parse_math": False,  # a file name may hold dollar signs
}


class Drawing(Figure):
    """A figure that knows the numbers behind its lines: `points`, and of how many values its bands
    show the spread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.points: list[PointRow] = []
        self.bands: set[int] = set()


def styles_of(keys: Sequence[Key], labels: Sequence[str], colors: str) -> dict[Key, Style]:
    """A marker, a colour and a label for each key.

    The shades are evenly spaced in the colour map named `colors`, so that neighbours can be told
    apart.
    """
    shades = matplotlib.colormaps[colors](np.linspace(0, LIGHTEST, len(keys)))
    return {
        key: {"color": tuple(shade), "marker": MARKERS[i % len(MARKERS)], "label": drawable(label)}
        for i, (key, shade, label) in enumerate(zip(keys, shades, labels, strict=True))
    }


def panel_grid(
    titles: Sequence[str | None], columns: int, inches: float | None = None, sharey: bool = True
) -> tuple[Drawing, list[Axes]]:
    """A figure with one panel per title, at most so many side by side, and a gap where it is None.

    It is `inches` wide; without, a column of text or the page.
    """
    columns = min(columns, len(titles), int(inches / NARROWEST) if inches else columns)
    lines = math.ceil(len(titles) / columns)
    width = (inches or (COLUMN_WIDTH if columns == 1 else PAGE_WIDTH)) / columns
    size = _points(matplotlib.rcParams["axes.titlesize"]) * (1 if columns <= 4 else 0.8)  # points
    # A letter is about 0.62 times as wide as it is high.
    shown = [wrapped(drawable(title or ""), int(72 * width / (0.62 * size))) for title in titles]
    height = (
        0.2
        + min(0.7 * width, HIGHEST)
        + 0.015 * size * max(title.count("\n") + 1 for title in shown)
    )
    figure = Drawing(figsize=(columns * width, lines * height), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=sharey, squeeze=False).ravel()
    placed = {i: title for i, title in enumerate(titles) if title is not None}
    for i, axes in enumerate(grid):
        if i not in placed:
            axes.remove()
    for i, title in placed.items():
        grid[i].set_title(shown[i], fontsize=size)
        grid[i].set_label(title)
        grid[i].tick_params(labelbottom=i + columns not in placed)
        if sharey and i - 1 not in placed:
            grid[i].tick_params(labelleft=True)
    return figure, [grid[i] for i in placed]


def finish(
    figure: Figure,
    x: str,
    y: str,
    styles: Sequence[Style],
    legend_title: str,
    more: Sequence[Artist] = (),
) -> None:
    """Label the axes that all panels share, and add a legend in a strip of its own above them.

    It has a line of each style, and `more`, artists with labels.
    """
    handles = [*(Line2D([], [], **style) for style in styles), *more]
    size = _points(matplotlib.rcParams["legend.fontsize"]) / 7
    columns = _columns([str(one.get_label()) for one in handles], figure.get_figwidth() / size)
    panels, strip = figure.get_figheight(), 0.2 + 0.16 * size * math.ceil(len(handles) / columns)
    figure.set_figheight(panels + strip)
    figure.legend(handles=handles, title=legend_title, loc="outside upper center", ncols=columns)
    if len(figure.axes) == 1:
        figure.axes[0].set(xlabel=x, ylabel=y)
    else:
        size = _points(matplotlib.rcParams["axes.labelsize"])
        figure.supxlabel(x, fontsize=size)
        middle = (0.5 * panels + 0.1) / (panels + strip)  # of the panels
        figure.supylabel(y, fontsize=size, y=middle)


def _points(size: str | float) -> float:
    """A size of letters, which styles may give in words."""
    return float(FontProperties(size=size).get_size_in_points())


def _columns(labels: Sequence[str], width: float) -> int:
    """The columns of a legend of as few lines as these labels, in letters of 7 points, allow in so
    many inches."""
    widths = [0.4 + 0.05 * len(label) for label in labels]  # inches: the line, and its letters
    fitting = [
        columns
        for columns in range(1, len(labels) + 1)
        # matplotlib fills one column after the other
        if sum(max(part) for part in np.array_split(widths, columns)) <= width
    ]
    fewest = math.ceil(len(labels) / max(fitting, default=1))  # lines
    return next((n for n in fitting if math.ceil(len(labels) / n) == fewest), 1)


def add_title(figure: Figure, title: str) -> None:
    """Put a title above all else, in as many lines as it takes; the figure grows by them."""
    if not title:
        return
    size = _points(matplotlib.rcParams["font.size"]) / 8
    lines = textwrap.wrap(with_escapes(title), int(figure.get_figwidth() / (0.065 * size)))
    strip = 0.05 + 0.14 * size * len(lines)  # inches
    height = figure.get_figheight() + strip
    figure.set_figheight(height)
    figure.text(0.5, 1 - 0.03 / height, "\n".join(lines), ha="center", va="top")
    # The layout would put a legend at the top of the figure, too, and makes no room for one that
    # has a place of its own.
    room = strip / height
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0, 0, 1, 1 - room), figure.transFigure)
        room += legend.get_window_extent().height / figure.bbox.height + 0.1 / height
    if isinstance(engine := figure.get_layout_engine(), ConstrainedLayoutEngine):
        engine.set(rect=(0, 0, 1, 1 - room))


def whole_numbers() -> MaxNLocator:
    """Ticks at a few round epochs; at the epoch, if there is but one."""
    return MaxNLocator(5, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)


def unit_interval(panels: Sequence[Axes]) -> None:
    """Show [0, 1] on the y axis, with room for markers at its ends.

    The axis goes on where values do: unbiased CKA may be negative, or a little above 1.
    """
    low = min(axes.dataLim.y0 for axes in panels)
    high = max(axes.dataLim.y1 for axes in panels)
    for axes in panels:
        axes.set_ylim(min(-0.03, low - 0.03), max(1.03, high + 0.03))
        if -2 < low and high < 2:  # else there is no end of ticks
            axes.yaxis.set_major_locator(MultipleLocator(0.2))


def layer_ticks(axis: Axis, layers: Sequence[str], length: float) -> None:
    """Name the layers along an axis of `length` inches.

    Names are 5 to 7 points high; if there is no room for all, every second one is shown, every
    third, and so on.
    """
    pitch = 72 * length / len(layers)  # points from one layer to the next
    every = math.ceil(5.5 / pitch)
    shown = range(0, len(layers), every)
    axis.set_ticks(
        shown,
        [drawable(layers[i]) for i in shown],
        fontsize=min(7, max(5, pitch / 1.2)),
        fontfamily=matplotlib.rcParams["font.family"],  # ticks may be made again without it
    )


def room_for(names: Sequence[str], places: Sequence[float]) -> bool:
    """Whether names of 7 points have room side by side, centred at these places, in inches."""
    halves = [0.029 * len(name) + 0.02 for name in names]
    return all(
        places[i + 1] - places[i] >= halves[i] + halves[i + 1] for i in range(len(names) - 1)
    )


def names_length(names: Iterable[str]) -> float:
    """Inches that the longest of the names takes at about 5 points."""
    return 0.034 * max(len(drawable(name)) for name in names)


def short_names(checkpoints: Sequence[str]) -> list[str]:
    """File names that fit a legend: without the files and folders at their ends that all share, and
    of what is left the ends, which tell runs and epochs apart; whole if they do not.

    >>> short_names(["runs/r25.safetensors"])
    ['runs/r25']
    >>> short_names(["a/folder/of/experiments/r25/epoch-0004.safetensors"])
    ['…of/experiments/r25/epoch-0004']
    >>> short_names(["results/mixup/best.safetensors", "results/plain/best.safetensors"])
    ['results/mixup', 'results/plain']
    """
    parts = [name.removesuffix(".safetensors").split("/") for name in checkpoints]
    if any(one != parts[0] for one in parts):  # else all they have is shared
        while min(map(len, parts)) > 1 and all(one[-1] == parts[0][-1] for one in parts):
            parts = [one[:-1] for one in parts]
    whole = [drawable("/".join(one)) for one in parts]
    short = [name if len(name) <= 30 else f"…{name[-29:]}" for name in whole]
    return short if len(set(short)) == len(set(whole)) else whole


def wrapped(text: str, width: int) -> str:
    """The text in lines of at most `width` letters, broken at spaces and after the dots and slashes
    of names where that is possible.

    >>> wrapped("CKA of layer1.0.conv1 at r = 67.5 %", 16).splitlines()
    ['CKA of layer1.0.', 'conv1 at r =', '67.5 %']
    """
    parts = re.split(r"(?<=[./])(?![\d.]+ %)|(?<= )(?!%)", text)
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(cut for line in lines for cut in textwrap.wrap(line, width))
