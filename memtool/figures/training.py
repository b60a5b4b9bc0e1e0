"""Training curves: loss and accuracies against the epoch."""

from matplotlib.figure import Figure

from memtool import MemtoolError
from memtool.figures.curves import (
    draw_runs,
    marked_epochs,
    require_epoch,
    run,
    run_styles,
    runs_title,
    spread_legend,
)
from memtool.figures.options import Options
from memtool.figures.rows import Needs, Rows
from memtool.figures.selection import of_epochs, of_ratios
from memtool.figures.style import finish, panel_grid, unit_interval, whole_numbers
from memtool.tables import Row, TrainingRow

TITLES = {  # of the panels, by the column that they show
    "loss": "loss",
    "given_accuracy": "accuracy on given labels",
    "true_accuracy": "accuracy on true labels",
    "mislabelled_accuracy": "memorization (mislabelled part)",
    "test_accuracy": "test accuracy",
}
NEEDS: Needs = Needs(
    TrainingRow,
    columns=("checkpoint", "epoch", "noise_ratio", *TITLES),
    conditions=("model", "data", "noise_kind"),
    optional=("seed", "order_seed", "noise_seed"),
)


def choose(rows: Rows, options: Options) -> list[Row]:
    """The rows of the noise ratios and epochs that are asked for."""
    rows = of_ratios(rows, options.ratios, lambda row: row["noise_ratio"])
    return of_epochs(rows, options.epochs, run)


def draw(rows: Rows, options: Options) -> Figure:
    """Loss in nats and accuracies in [0, 1] against the epoch, with one curve per noise ratio.

    A column without any value has no panel: memorization, if nothing was mislabelled.
    """
    columns = [name for name in TITLES if any(row[name] is not None for row in rows)]
    if not columns:
        raise MemtoolError(f"no row has a value in any of {', '.join(TITLES)}")
    require_epoch(rows)
    styles, marked = run_styles(rows), marked_epochs(rows)
    figure, panels = panel_grid([TITLES[name] for name in columns], 3, options.width, sharey=False)
    for axes, column in zip(panels, columns, strict=True):
        draw_runs(axes, rows, x="epoch", y=column, styles=styles, marked=marked)
        if column == "loss":
            axes.set_ylim(bottom=0)
        else:
            unit_interval([axes])
    panels[0].xaxis.set_major_locator(whole_numbers())
    finish(
        figure,
        x="epoch",
        y="",
        styles=list(styles.values()),
        legend_title=runs_title(styles),
        more=spread_legend(figure),
    )
    return figure
