"""Heatmaps: CKA of each layer of a checkpoint with each layer of the reference."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from memtool import MemtoolError
from memtool.errors import shortened
from memtool.figures.colors import Style
from memtool.figures.letters import drawable
from memtool.figures.options import Options
from memtool.figures.rows import Needs, Rows, groups, in_order, positions, usable
from memtool.figures.selection import of_layers
from memtool.figures.similarity import networks, several_reference_layers
from memtool.figures.stages import stage_ends, stage_of
from memtool.figures.style import (
    LINE_HEIGHT,
    PAGE_WIDTH,
    Drawing,
    layer_ticks,
    names_length,
    wrapped,
)
from memtool.models.spec import STITCHED
from memtool.specs import PARTS, LayerName, corresponding
from memtool.tables import CkaRow, Row

NEEDS: Needs = Needs(
    CkaRow,
    columns=("checkpoint", "reference", "layer", "reference_layer", "cka"),
    conditions=("estimator", "kernel", "bandwidth", "data", "n"),
    optional=("model", "reference_model"),
)
COLORBAR = 0.6  # inches
MOST_VALUES = 8  # layers up to which there is room to write the values into the cells
MOST_NAMED = 40  # layers up to which all are named, unless it is asked for
WIDEST = 30.0  # inches, of a figure for whose layers one asks, and for no width
NARROWEST = 0.5  # inches, of a panel whatever the width and the names
STAGE_LINE: Style = {"color": "white", "linewidth": 0.5, "alpha": 0.8}
DIAGONAL: dict[str, Any] = {
    "facecolor": "none",
    "edgecolor": "#00B4D8",
    "linewidth": 0.6,
    "clip_on": False,
}


def choose(rows: Rows, options: Options) -> list[Row]:
    """The rows of the layers, on both sides, that are asked for.

    Raises MemtoolError for checkpoints of which corresponding layers alone are compared.
    """
    for (checkpoint, reference), group in groups(rows, networks).items():
        if not several_reference_layers(group):
            raise MemtoolError(
                f"{shortened(checkpoint, 100)}: its layers are compared with corresponding ones of "
                f"{shortened(reference, 100)} alone, and a heatmap shows each with each: compare "
                "them with memtool cka --pairs all, or draw another figure"
            )
    return of_layers(of_layers(rows, options.layers), options.layers, "reference_layer")


def draw(rows: Rows, options: Options) -> Figure:
    """CKA, coloured from 0 to 1, with one panel per pair of checkpoints.

    Layers run from the first, at the bottom left, to the last. Cells without a value are grey, and
    those of corresponding layers framed. White lines are drawn after each stage of a network, such
    as `layer1`. Of many layers, the ends of stages alone are named; where layers are asked for, all
    are, and panels grow with them.

    Raises MemtoolError if two rows are about the same cell, since nothing is averaged here.
    """
    usable(rows, "cka")
    pairs = {pair: _in_order(group) for pair, group in groups(rows, networks).items()}
    margin = 0.5 + names_length([*positions(rows, "layer"), *positions(rows, "reference_layer")])
    layers = max(len(positions(group, "layer")) for group in pairs.values())
    width = options.width or PAGE_WIDTH
    widest = WIDEST if options.layers and not options.width else width
    room = max(widest - COLORBAR - margin, NARROWEST)
    side = max(min(2.0, room), min(0.09 * layers, room))
    figure, panels = _panels(len(pairs), side + margin, width)
    for axes, ((checkpoint, reference), group) in zip(panels, pairs.items(), strict=True):
        image = _draw_matrix(axes, group, side, options)
        letters = int(72 * side / (0.62 * 8))
        axes.set_xlabel(wrapped(f"layer of {_shown(reference)}", letters))
        axes.set_ylabel(wrapped(f"layer of {_shown(checkpoint)}", letters))
        _record(figure, group, f"{checkpoint}, {reference}" if len(pairs) > 1 else "")
    figure.colorbar(image, ax=panels, label="CKA", fraction=0.05)
    return figure


def _shown(checkpoint: str) -> str:
    return drawable(checkpoint.removesuffix(".safetensors"))


def _record(figure: Drawing, rows: Rows, panel: str) -> None:
    """Add the cells that have a value to the points of the figure."""
    figure.points += [
        {
            "panel": panel,
            "curve": row["layer"],
            "x": row["reference_layer"],
            "measure": "cka",
            "value": row["cka"],
            "deviation": None,
            "n": 1,
        }
        for row in rows
        if row["cka"] is not None
    ]


def _panels(number: int, side: float, width: float) -> tuple[Drawing, list[Axes]]:
    """Panels, `side` inches wide and high with their labels, and room for a colour bar."""
    columns = min(number, max(1, int((width - COLORBAR) / side)))
    lines = math.ceil(number / columns)
    size = (columns * side + COLORBAR, lines * side)
    figure = Drawing(figsize=size, layout="compressed")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[number:]:
        axes.remove()
    return figure, list(grid[:number])


def _draw_matrix(axes: Axes, rows: Rows, side: float, options: Options) -> AxesImage:
    """Draw one pair of checkpoints, `side` inches wide; returns the image, for the colour bar."""
    layers, references = positions(rows, "layer"), _references(rows)
    matrix = _matrix(rows, layers, references)
    colors = matplotlib.colormaps["magma"].with_extremes(bad="0.75")
    image = axes.imshow(matrix, cmap=colors, vmin=0, vmax=1, origin="lower")
    if len(set(matrix.shape)) > 1:  # else names on the shorter side would have no room
        axes.set_aspect("auto")
    _name_layers(axes.xaxis, list(references), side, options)
    _name_layers(axes.yaxis, list(layers), side, options)
    axes.tick_params(axis="x", rotation=90)
    for end in stage_ends(list(references), options.marks):
        axes.axvline(end + 0.5, **STAGE_LINE)
    for end in stage_ends(list(layers), options.marks):
        axes.axhline(end + 0.5, **STAGE_LINE)
    ours = [_names(layer, rows[0]["model"]) for layer in layers]
    theirs = [_names(layer, rows[0]["reference_model"]) for layer in references]
    axes.add_collection(_frames([(x, y) for y, x in corresponding(ours, theirs)]))
    if max(matrix.shape) <= MOST_VALUES:
        _write_values(axes, matrix)
    return image


def _name_layers(axis: Axis, layers: Sequence[str], length: float, options: Options) -> None:
    """Name the layers along an axis of `length` inches: of many, unless one asks for layers, those
    that end a stage or are part of none, the last of several in a row."""
    ends = stage_ends(layers, options.marks)
    if options.layers or len(layers) <= MOST_NAMED or not ends:
        layer_ticks(axis, layers, length)
        return
    least = LINE_HEIGHT * len(layers) / length  # layers from one name to the next
    places = sorted(ends)
    shown = [a for a, b in zip(places, [*places[1:], math.inf], strict=True) if b - a >= least]
    stages = [*map(stage_of, layers), ""]
    outside = [i for i in range(len(layers)) if stages[i] is None is not stages[i + 1]]
    shown += [i for i in outside if all(abs(i - place) >= least for place in shown)]
    axis.set_ticks(sorted(shown), [drawable(ends.get(i, layers[i])) for i in sorted(shown)])


def _frames(cells: Iterable[tuple[int, int]]) -> PolyCollection:
    """A frame for each of the cells, (x, y)."""
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    return PolyCollection([corners + cell for cell in cells], **DIAGONAL)


def _names(layer: str, model: str | None) -> list[LayerName]:
    """What a layer is called in its model and, if that is stitched, may be called in the part that
    it is of, or in a part of that: the text of a spec does not say which of them are stitched."""
    is_stitched = (model or "").startswith(f"{STITCHED}(")
    names = [(layer, is_stitched)]
    while is_stitched and layer.startswith(PARTS):
        layer = layer.partition(".")[2]
        names.append((layer, False))
    return names


def _in_order(rows: Rows) -> list[Row]:
    """The rows of a pair of checkpoints by layer, in order of execution; not all cells need be
    there."""
    return in_order(rows, lambda row: row["reference_layer"], lambda row: row["layer"])


def _references(rows: Rows) -> dict[str, int]:
    """The places of the reference's layers on their axis, in order of execution."""
    own = in_order(rows, lambda row: row["layer"], lambda row: row["reference_layer"])
    return positions(own, "reference_layer")


def _matrix(
    rows: Rows, layers: Mapping[str, int], references: Mapping[str, int]
) -> np.ndarray[Any, Any]:
    """(layers, reference layers) CKA; NaN where there is no value."""
    cells = [(layers[row["layer"]], references[row["reference_layer"]]) for row in rows]
    if len(set(cells)) < len(cells):
        raise MemtoolError(
            f"{rows[0]['checkpoint']}: the table compares it with {rows[0]['reference']} more than "
            "once; a heatmap shows one comparison of two checkpoints"
        )
    matrix = np.full((len(layers), len(references)), np.nan)
    for cell, row in zip(cells, rows, strict=True):
        matrix[cell] = np.nan if row["cka"] is None else row["cka"]
    return matrix


def _write_values(axes: Axes, matrix: np.ndarray[Any, Any]) -> None:
    for (line, column), value in np.ndenumerate(matrix):
        if not math.isnan(value):
            color = "white" if value < 0.6 else "black"
            text = f"{value:.2f}"
            axes.text(column, line, text, color=color, size=5.5, ha="center", va="center")
