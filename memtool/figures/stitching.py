"""Figure 2: test accuracy of stitched models against the noise ratio."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memtool import MemtoolError
from memtool.errors import shortened
from memtool.figures.curves import curve, cut_name
from memtool.figures.options import Options
from memtool.figures.rows import Needs, Rows, groups, usable
from memtool.figures.selection import of_layers, of_ratios
from memtool.figures.style import CUT_COLORS, NOISE_RATIO, Style, finish, panel_grid, styles_of
from memtool.tables import Row, StitchingRow

NEEDS: Needs = Needs(
    StitchingRow,
    columns=(
        *("direction", "test_accuracy"),
        *("front", "front_layer", "front_noise_ratio", "front_accuracy"),
        *("back", "back_layer", "back_noise_ratio", "back_accuracy"),
    ),
    conditions=(
        *("data", "batch_norm", "init", "optimizer", "epochs", "learning_rate", "batch_size"),
    ),
    optional=(
        *("epoch", "control_accuracy", "connector", "n", "seed"),
        *("front_epoch", "front_noise_seed", "front_seed"),
        *("back_epoch", "back_noise_seed", "back_seed"),
    ),
)

TITLES = {  # of the directions
    "forward": "noisy front, clean back",
    "reverse": "clean front, noisy back",
    "control": "noisy front, own back (control)",
}
NOT_CLEAN = {"forward": "front of r, other back", "reverse": "other front, back of r"}
CLEAN: Style = {"color": "black", "linestyle": ":", "zorder": 3, "label": "clean model"}
NOISY: Style = {"color": "#00B4D8", "linestyle": "--", "zorder": 3, "label": "noisy model"}
OTHER_END = {"front": "back", "back": "front"}
NO_GAIN: Style = {**CLEAN, "label": "as the control"}


def choose(rows: Rows, options: Options) -> list[Row]:
    """The rows of the cuts and noise ratios that are asked for."""
    rows = of_layers(rows, options.layers, "front_layer")
    return of_ratios(
        rows, options.ratios, lambda row: row[f"{_noisy_end(row['direction'])}_noise_ratio"]
    )


def draw(rows: Rows, options: Options = Options()) -> Figure:
    """Figure 2: one panel per direction, one curve per cut.

    The black dotted line is the accuracy of the clean networks alone: those with noise ratio 0,
    whether they are fronts or backs. The cyan dashed line is that of the noisy networks alone. If
    the rows have several epochs of a stitching layer, the last one is drawn.

    Raises MemtoolError if a direction is not known, or the noise ratio of a noisy network.
    """
    if options.net_of_control:
        return _draw_net_of_control(rows, options)
    rows = _with_curves(usable(_trained(rows), "test_accuracy"))
    directions = _directions(rows)
    shown = [name for name in TITLES if name in directions]
    clean, styles = _clean_accuracy(rows), _cut_styles(rows)
    figure, panels = panel_grid(_titles(directions, shown), len(shown), options.width)
    for axes, direction in zip(panels, shown, strict=True):
        if clean is not None:
            axes.axhline(clean, **CLEAN)
        _draw_noisy(axes, directions[direction], _noisy_end(direction))
        _draw_cuts(axes, directions[direction], _noisy_end(direction), styles)
    lines = [*styles.values(), *([] if clean is None else [CLEAN]), NOISY]
    finish(figure, NOISE_RATIO, "test accuracy", lines, "cut")
    return figure


def _draw_net_of_control(rows: Rows, options: Options) -> Figure:
    """Figure 2 after subtracting from each row the test accuracy of its control.

    A dotted line at 0 stands for a stitched model that is as accurate as its control.

    Raises MemtoolError if no row has a control, a direction is not known, or the noise ratio of a
    noisy network.
    """
    rows = [
        {**row, "test_accuracy": row["test_accuracy"] - row["control_accuracy"]}
        for row in usable(_trained(rows), "test_accuracy")
        if row["direction"] != "control" and row["control_accuracy"] is not None
    ]
    if not rows:
        raise MemtoolError(
            "no row has a control to subtract: stitch with --control, and keep the rows of the "
            "other directions"
        )
    rows = _with_curves(rows)
    directions = _directions(rows)
    styles = _cut_styles(rows)
    figure, panels = panel_grid(
        _titles(directions, list(directions)), len(directions), options.width
    )
    for axes, (direction, group) in zip(panels, directions.items(), strict=True):
        axes.axhline(0, **NO_GAIN)
        _draw_cuts(axes, group, _noisy_end(direction), styles)
    finish(figure, NOISE_RATIO, "test accuracy − control's", [*styles.values(), NO_GAIN], "cut")
    return figure


def _trained(rows: Rows) -> list[Row]:
    """The rows of stitching layers that are trained to the end, or for which no epoch is given."""
    return [row for row in rows if row["epoch"] in (None, row["epochs"])]


def _directions(rows: Rows) -> dict[str, list[Row]]:
    """The rows by direction; raises MemtoolError if one is not known."""
    directions = groups(rows, lambda row: str(row["direction"]))
    if unknown := [name for name in directions if name not in TITLES]:
        raise MemtoolError(
            f"no direction {shortened(repr(unknown[0]))}; there are {', '.join(TITLES)}"
        )
    return directions


def _noisy_end(direction: str) -> str:
    """Which end of a stitched model comes from the noisy network."""
    return "back" if direction == "reverse" else "front"


def _other_ratio(row: Row) -> float | None:
    """The noise ratio of the end that is not on the axis; None if unknown, and for a control."""
    if row["direction"] == "control":
        return None
    ratio: float | None = row[f"{OTHER_END[_noisy_end(row['direction'])]}_noise_ratio"]
    return ratio


def _with_curves(rows: Rows) -> list[Row]:
    """The rows with the names of their curves: the cut and, where networks of several noise ratios
    give the other end, that ratio."""
    several = len({_other_ratio(row) for row in rows if row["direction"] != "control"}) > 1

    def name(row: Row) -> str:
        ratio = _other_ratio(row)
        cut = cut_name(row)
        return f"{cut}, other end {100 * ratio:g} %" if several and ratio is not None else str(cut)

    return [{**row, "curve": name(row)} for row in rows]


def _titles(directions: Mapping[str, Rows], shown: Sequence[str]) -> list[str]:
    """The titles of the panels, which say clean only where all of that end are."""
    return [
        TITLES[name]
        if name == "control" or all(_other_ratio(row) == 0 for row in directions[name])
        else NOT_CLEAN[name]
        for name in shown
    ]


def _draw_noisy(axes: Axes, rows: Rows, noisy: str) -> None:
    """Draw the accuracy of the noisy networks alone; `noisy` is the end that they give."""
    _require_noise_ratio(rows, noisy)
    columns = [name for name in rows[0] if name == "seed" or name.startswith(noisy)]
    own = [{name: row[name] for name in columns if not name.endswith("layer")} for row in rows]
    alone = curve(own, f"{noisy}_noise_ratio", f"{noisy}_accuracy")
    axes.plot(_percent(alone.x), alone.mean, **NOISY)


def _draw_cuts(axes: Axes, rows: Rows, noisy: str, styles: Mapping[str, Style]) -> None:
    """Draw one curve per cut, with error bars where several rows make a point."""
    _require_noise_ratio(rows, noisy)
    for cut, group in groups(rows, lambda row: str(row["curve"])).items():
        stitched = curve(group, f"{noisy}_noise_ratio", "test_accuracy")
        spread = stitched.spread if any(stitched.spread) else None
        axes.errorbar(_percent(stitched.x), stitched.mean, spread, elinewidth=0.6, **styles[cut])


def _cut_styles(rows: Rows) -> dict[str, Style]:
    names = list(dict.fromkeys(row["curve"] for row in rows))
    return styles_of(names, names, CUT_COLORS)


def _clean_accuracy(rows: Rows) -> float | None:
    """The mean over the networks with noise ratio 0, each counted once; None if there are none."""
    networks = {  # a dict, since a set has no order and sums of floats depend on it
        (row[end], row[f"{end}_accuracy"]): row[f"{end}_accuracy"]
        for row in rows
        for end in ("front", "back")
        if row[f"{end}_noise_ratio"] == 0 and row[f"{end}_accuracy"] is not None
    }
    return float(np.mean(list(networks.values()))) if networks else None


def _require_noise_ratio(rows: Rows, end: str) -> None:
    for row in rows:
        if row[f"{end}_noise_ratio"] is None:
            raise MemtoolError(
                f"{row[end]}: its noise ratio is unknown, so it has no place on the axis of noise "
                f"ratios; fill in the column {end}_noise_ratio or leave its rows out of the table"
            )


def _percent(ratios: Iterable[float]) -> list[float]:
    return [100 * ratio for ratio in ratios]
