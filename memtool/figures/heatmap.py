"""Heatmaps: CKA of each layer of a checkpoint with each layer of the reference."""

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from memtool import MemtoolError
from memtool.figures.options import Options
from memtool.figures.rows import Needs, Rows, groups, positions, usable
from memtool.figures.selection import of_layers
from memtool.figures.style import PAGE_WIDTH, layer_ticks, names_length, short_name
from memtool.tables import CkaRow, Row

NEEDS: Needs = Needs(
    CkaRow,
    columns=("checkpoint", "reference", "layer", "reference_layer", "cka"),
    conditions=("estimator", "kernel", "bandwidth", "data", "n"),
)
COLORBAR = 0.6  # inches
MOST_VALUES = 8  # layers up to which there is room to write the values into the cells


def choose(rows: Rows, options: Options) -> list[Row]:
    """The rows of the layers, on both sides, that are asked for."""
    return of_layers(of_layers(rows, options.layers), options.layers, "reference_layer")


def draw(rows: Rows, options: Options = Options()) -> Figure:
    """CKA, coloured from 0 to 1, with one panel per pair of checkpoints.

    Layers run from the first, at the bottom left, to the last. Cells without a value are grey.

    Raises MemtoolError if two rows are about the same cell, since nothing is averaged here.
    """
    usable(rows, "cka")
    pairs = groups(rows, lambda row: (row["checkpoint"], row["reference"]))
    margin = 0.5 + names_length([*positions(rows, "layer"), *positions(rows, "reference_layer")])
    layers = max(len(positions(group, "layer")) for group in pairs.values())
    width = options.width or PAGE_WIDTH
    side = max(min(2.0, width - COLORBAR - margin), min(0.09 * layers, width - COLORBAR - margin))
    figure, panels = _panels(len(pairs), side + margin, width)
    for axes, ((checkpoint, reference), group) in zip(panels, pairs.items(), strict=True):
        image = _draw_matrix(axes, group, side)
        axes.set_xlabel(f"layer of {short_name(reference)}")
        axes.set_ylabel(f"layer of {short_name(checkpoint)}")
    figure.colorbar(image, ax=panels, label="CKA", fraction=0.05)
    return figure


def _panels(number: int, side: float, width: float) -> tuple[Figure, list[Axes]]:
    """Panels, `side` inches wide and high with their labels, and room for a colour bar."""
    columns = min(number, max(1, int((width - COLORBAR) / side)))
    lines = math.ceil(number / columns)
    size = (columns * side + COLORBAR, lines * side)
    figure = Figure(figsize=size, layout="compressed")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[number:]:
        axes.remove()
    return figure, list(grid[:number])


def _draw_matrix(axes: Axes, rows: Rows, side: float) -> AxesImage:
    """Draw one pair of checkpoints, `side` inches wide; returns the image, for the colour bar."""
    matrix = _matrix(rows)
    colors = matplotlib.colormaps["magma"].with_extremes(bad="0.75")
    image = axes.imshow(matrix, cmap=colors, vmin=0, vmax=1, origin="lower")
    layer_ticks(axes.xaxis, list(positions(rows, "reference_layer")), side)
    layer_ticks(axes.yaxis, list(positions(rows, "layer")), side)
    axes.tick_params(axis="x", rotation=90)
    if max(matrix.shape) <= MOST_VALUES:
        _write_values(axes, matrix)
    return image


def _matrix(rows: Rows) -> np.ndarray[Any, Any]:
    """(layers, reference layers) CKA; NaN where there is no value."""
    layers, references = positions(rows, "layer"), positions(rows, "reference_layer")
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
