"""CKA against the epochs: a panel per layer with a curve per run."""

from matplotlib.figure import Figure

from memtool.figures.bounds import draw_ceiling, draw_floor, styles_of_bounds
from memtool.figures.curves import (
    draw_runs,
    marked_epochs,
    require_epoch,
    run,
    run_styles,
    runs_title,
    spread_legend,
)
from memtool.figures.layer_axis import one_per_tensor
from memtool.figures.options import LAST, Options
from memtool.figures.rows import Rows, groups
from memtool.figures.selection import of_epochs
from memtool.figures.style import finish, panel_grid, unit_interval, whole_numbers


def draw(rows: Rows, ceiling: Rows, ylabel: str, options: Options) -> Figure:
    """CKA against the epoch, with a panel per layer; layers of the same tensor share one.

    The ceiling is the curve of a second clean network, or a level line where there is but its last
    epoch; the floor is the mean over the runs.
    """
    require_epoch([*rows, *ceiling])
    if options.epochs:
        shown = {row["epoch"] for row in rows}
        among = [row for row in ceiling if row["epoch"] in shown]
        ceiling = among or of_epochs(ceiling, [LAST], run)
    layers, highest = groups(rows, lambda row: row["layer"]), groups(ceiling, lambda r: r["layer"])
    names = one_per_tensor(rows)
    styles, marked = run_styles(rows), marked_epochs(rows)
    figure, panels = panel_grid(names, 4 if len(names) <= 16 else 6, options.width)
    for axes, layer in zip(panels, names, strict=True):
        draw_floor(axes, layers[layer], "epoch")
        draw_ceiling(axes, highest.get(layer, ()), "epoch")
        draw_runs(axes, layers[layer], x="epoch", y="cka", styles=styles, marked=marked)
    unit_interval(panels)
    panels[0].xaxis.set_major_locator(whole_numbers())
    lines = [*styles.values(), *styles_of_bounds(rows, ceiling)]
    finish(
        figure,
        x="epoch",
        y=ylabel,
        styles=lines,
        legend_title=runs_title(styles),
        more=spread_legend(figure),
    )
    return figure
