"""CKA against the layers: a curve per epoch in a panel per run, or a curve per run of one epoch."""

from collections.abc import Collection, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memtool.figures.bounds import draw_ceiling, draw_floor, styles_of_bounds
from memtool.figures.colors import Style, epoch_colors
from memtool.figures.curves import (
    Run,
    curve,
    draw_curve,
    require_epoch,
    run,
    run_styles,
    runs_title,
    spread_legend,
)
from memtool.figures.layer_axis import LayerAxis, is_side, without_shortcuts
from memtool.figures.options import LAST, Options
from memtool.figures.rows import Rows, groups
from memtool.figures.selection import few, of_epochs
from memtool.figures.style import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    Drawing,
    finish,
    panel_grid,
    unit_interval,
)

MOST_EPOCHS = 8  # up to which all are drawn
MOST_IN_LEGEND = 10  # epochs
MANY = 20  # layers, from which on one panel takes the page
SIDE_MARK: Style = {"marker": ".", "markersize": 2.5, "linestyle": "none"}
SHORTCUTS: Style = {**SIDE_MARK, "color": "0.4", "label": "shortcuts"}


def draw(rows: Rows, ceiling: Rows, ylabel: str, options: Options) -> Figure:
    """CKA against the layers, in order of execution.

    Where runs have several epochs, a panel per run has a curve per epoch; else one panel has a
    curve per run. Dashed lines mark the ends of the network's stages, or the layers that are asked
    for. Rows of shortcuts are dots beside the curves. The ceiling is that of the last epoch, and so
    is the floor.
    """
    axis = LayerAxis.of([*rows, *ceiling], options.marks)
    ceiling = axis.placed(without_shortcuts(of_epochs(ceiling, [LAST], run)))
    rows = axis.placed(rows)
    if several_epochs(rows):
        return _panel_per_run(rows, ceiling, axis, ylabel, options)
    return _one_panel(rows, ceiling, axis, ylabel, options)


def several_epochs(rows: Rows) -> bool:
    """Whether any run has rows of more than one epoch."""
    return any(len({row["epoch"] for row in group}) > 1 for group in groups(rows, run).values())


def _panel_per_run(
    rows: Rows, ceiling: Rows, axis: LayerAxis, ylabel: str, options: Options
) -> Figure:
    require_epoch(rows)
    if not options.epochs:
        epochs = doubling(sorted({row["epoch"] for row in rows}))
        rows = of_epochs(rows, [*epochs, LAST], run)
    styles, runs = epoch_styles(rows), groups(rows, run)
    shown = run_styles(rows)
    titles = [_title(one, style) for one, style in shown.items()]
    figure, panels = panel_grid(titles, 3, options.width)
    for axes, one in zip(panels, shown, strict=True):
        by_epoch = groups(runs[one], lambda row: row["epoch"])
        _draw_bounds(axes, runs[one], ceiling, axis)
        for epoch, style in styles.items():
            draw_layers(axes, by_epoch.get(epoch, ()), style=style, axis=axis, marked=())
    return finished(
        figure,
        panels,
        axis,
        ylabel=ylabel,
        rows=rows,
        ceiling=ceiling,
        styles=few(list(styles.values()), MOST_IN_LEGEND),
        legend_title="epoch",
    )


def _one_panel(rows: Rows, ceiling: Rows, axis: LayerAxis, ylabel: str, options: Options) -> Figure:
    styles, runs = run_styles(rows), groups(rows, run)
    width = options.width or (COLUMN_WIDTH if len(axis.layers) <= MANY else PAGE_WIDTH)
    figure, panels = panel_grid([""], 1, width)
    (axes,) = panels
    _draw_bounds(axes, rows, ceiling, axis)
    for one, style in styles.items():
        draw_layers(axes, runs[one], style=style, axis=axis, marked=axis.marked)
    return finished(
        figure,
        panels,
        axis,
        ylabel=ylabel,
        rows=rows,
        ceiling=ceiling,
        styles=list(styles.values()),
        legend_title=runs_title(styles),
    )


def finished(
    figure: Drawing,
    panels: Sequence[Axes],
    axis: LayerAxis,
    ylabel: str,
    rows: Rows,
    ceiling: Rows,
    styles: Sequence[Style],
    legend_title: str,
) -> Figure:
    """The figure with its axes and legend, and higher by the names below it."""
    width = figure.get_figwidth() * panels[0].get_position().width
    below = max(axis.draw(axes, width) for axes in panels)
    unit_interval(panels)
    figure.set_figheight(figure.get_figheight() + below)
    shortcuts = [SHORTCUTS] if any(map(is_side, axis.layers)) else []
    lines = [*styles, *shortcuts, *styles_of_bounds(without_shortcuts(rows), ceiling)]
    finish(
        figure,
        x="layer",
        y=ylabel,
        styles=lines,
        legend_title=legend_title,
        more=spread_legend(figure),
    )
    return figure


def draw_layers(
    axes: Axes, rows: Rows, style: Style, axis: LayerAxis, marked: Collection[float]
) -> None:
    """Draw CKA against the places of layers; those of shortcuts are dots of their own."""
    main = curve(without_shortcuts(rows), "place", "cka")
    draw_curve(axes, main, y="cka", style=style, marked=marked, names=axis.layers)
    side = curve([row for row in rows if is_side(row["layer"])], "place", "cka")
    dots = {**style, **SIDE_MARK, "label": f"{style['label']}, shortcuts"}
    draw_curve(axes, side, y="cka", style=dots, names=axis.layers)


def _draw_bounds(axes: Axes, rows: Rows, ceiling: Rows, axis: LayerAxis) -> None:
    last = of_epochs(rows, [LAST], run)
    draw_floor(axes, without_shortcuts(last), x="place", names=axis.layers)
    draw_ceiling(axes, ceiling, x="place", names=axis.layers)


def doubling(epochs: Sequence[int]) -> list[int]:
    """Of many epochs the first, those that double, and the last; of a few all.

    Where 2, 4 or 8 is not there, the next one stands for it.

    >>> doubling(range(1, 21)), doubling(range(5, 101, 5)), doubling([10, 20, 30])
    ([1, 2, 4, 8, 16, 20], [5, 10, 20, 35, 65, 100], [10, 20, 30])
    """
    if len(epochs) <= MOST_EPOCHS:
        return list(epochs)
    powers = [2**i for i in range(max(epochs).bit_length())]
    nexts = [min((e for e in epochs if e >= power), default=epochs[-1]) for power in powers]
    return sorted({epochs[0], *nexts, epochs[-1]})


def epoch_styles(rows: Rows) -> dict[int, Style]:
    """A shade for each epoch, from light to dark."""
    epochs = sorted({row["epoch"] for row in rows})
    return {
        epoch: {"color": color, "label": str(epoch)}
        for epoch, color in zip(epochs, epoch_colors(len(epochs)), strict=True)
    }


def _title(one: Run, style: Style) -> str:
    """The title of a run's panel: `r = 25 %`, and what else tells it apart."""
    label: Any = style["label"]
    if isinstance(one.noise, str):
        return str(label)
    noise, comma, rest = label.partition(", ")
    return f"r = {noise} %{comma}{rest}"
