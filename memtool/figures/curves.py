"""Curves: the mean of a column against another, and the styles by which runs are told apart."""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from memtool import MemtoolError
from memtool.errors import shortened
from memtool.figures.colors import Style, noise_style
from memtool.figures.letters import drawable
from memtool.figures.rows import Rows, groups
from memtool.figures.selection import few
from memtool.figures.style import (
    CUT_COLORS,
    MOST_MARKERS,
    NOISE_RATIO,
    Drawing,
    short_names,
    styles_of,
)
from memtool.tables import Row

ALIKE = ("model", "noise_kind", "connector")  # what is averaged has these in common
NETWORKS = ("checkpoint", "front", "back", "reference")  # the columns that name files
BAND: dict[str, Any] = {"alpha": 0.25, "linewidth": 0}
LINES = ("-", (0, (6, 1.5)), "-.", (0, (3, 1, 1, 1, 1, 1)))  # of runs of one noise ratio


class Run(NamedTuple):
    """What a curve stands for: all that tells runs apart but their seeds.

    `noise` is the noise ratio, or the checkpoint where that is unknown. The rest is None where it
    is unknown.
    """

    noise: float | str
    noise_kind: str | None = None
    model: str | None = None


class Curve(NamedTuple):
    """Points in ascending order of x, and how far the values at each x spread."""

    x: list[float]
    mean: list[float]
    spread: list[float]  # sample standard deviations; 0 for a single value
    n: list[int]  # numbers of values

    @staticmethod
    def of(points: Mapping[float, Sequence[float]]) -> "Curve":
        """The means of the values at each x."""
        values = [points[x] for x in sorted(points)]
        return Curve(
            x=sorted(points),
            mean=[float(np.mean(v)) for v in values],
            spread=[float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in values],
            n=[len(v) for v in values],
        )


def curve(rows: Iterable[Row], x: str, y: str) -> Curve:
    """Column `y` against column `x`: rows that agree in `x` become one point.

    Rows with an empty cell in `y` do not count. Raises MemtoolError if other rows become one point
    than those of different seeds.

    >>> losses = [(1, 0, 1.5), (1, 1, 2.5), (2, 0, 0.5), (3, 0, None)]
    >>> rows = [{"epoch": epoch, "seed": seed, "loss": loss} for epoch, seed, loss in losses]
    >>> curve(rows, "epoch", "loss")
    Curve(x=[1, 2], mean=[2.0, 0.5], spread=[0.7071067811865476, 0.0], n=[2, 1])
    """
    present = [row for row in rows if row[y] is not None]
    points = groups(present, lambda row: row[x]).items()
    return Curve.of({at: [row[y] for row in one_per_seed(group, y)] for at, group in points})


def one_per_seed(rows: Iterable[Row], y: str) -> list[Row]:
    """The rows, of which there is one for each seed: those that only repeat another are left out.

    Every column whose name ends in `seed` is one. Raises MemtoolError, which names both, for two
    rows of equal seeds that are about different networks, or that differ in column `y`; and for two
    of any seeds that differ in a column of ALIKE, or one that ends so.
    """
    by_seeds: dict[Hashable, Row] = {}
    for row in rows:
        seeds = tuple(value for column, value in row.items() if column.endswith("seed"))
        _check_repeats(by_seeds.setdefault(seeds, row), row, y)
    first, *others = [*by_seeds.values()] or [{}]
    for row in others:
        _check_alike(first, row)
    return list(by_seeds.values())


def _check_alike(first: Row, row: Row) -> None:
    for column in row:
        if column.endswith(ALIKE) and first[column] != row[column]:
            a, b = (" and ".join(_networks(one)) for one in (first, row))
            raise MemtoolError(
                f"{a}, as well as {b}, would become one point, although they differ in {column} "
                f"({shortened(first[column])} and {shortened(row[column])}); make a table for each"
            )


def _networks(row: Row) -> list[str]:
    return [shortened(row[column], 100) for column in NETWORKS if row.get(column)]


def _check_repeats(first: Row, row: Row, y: str) -> None:
    for column in NETWORKS:
        if first.get(column) != row.get(column):
            raise MemtoolError(
                f"{shortened(first[column], 100)} and {shortened(row[column], 100)} would become "
                "one point, although they do not "
                f"differ in a seed ({_conditions(row)}); leave one of them out of the table, or "
                "tell them apart in its columns"
            )
    if first[y] != row[y]:
        named = ", ".join(_networks(row))
        other = {c: (first[c], row[c]) for c in row if c != y and first[c] != row[c]}
        differing = ", ".join(f"{c} ({a} and {b})" for c, (a, b) in other.items())
        raise MemtoolError(
            f"{named}: the table has two values of {y} ({first[y]:.6g} and {row[y]:.6g}) for the "
            f"same seeds ({_conditions(row)})"
            + (f"; they differ in {differing}: make a table for each" if differing else "")
        )


def _conditions(row: Row) -> str:
    shown = ("layer", "front_layer", "epoch", "noise_ratio", "seed")
    return ", ".join(
        f"{column.replace('_', ' ')} {shortened(row[column])}"
        for column in shown
        if row.get(column) is not None
    )


def draw_runs(
    axes: Axes,
    rows: Rows,
    x: str,
    y: str,
    styles: Mapping[Run, Style],
    marked: Collection[float] | None = None,
) -> None:
    """Draw column `y` against column `x` with one curve per run, as `draw_curve` does."""
    runs = groups(rows, run)
    for name, style in styles.items():
        draw_curve(axes, curve(runs.get(name, ()), x, y), y=y, style=style, marked=marked)


def draw_curve(
    axes: Axes,
    curve: Curve,
    y: str,
    style: Style,
    marked: Collection[float] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Draw a curve of the column `y`, with markers at the x that are `marked`, or at all.

    Its spread is a light band. Where positions on the x axis stand for `names`, these are recorded
    among the figure's points.
    """
    if not curve.x:
        return
    if len(curve.x) == 1:  # a line of one point would not be seen
        style, marked = {"marker": "o", "markersize": 3, **style}, None
    at = [i for i, x in enumerate(curve.x) if marked is None or x in marked]
    axes.plot(curve.x, curve.mean, **style, markevery=at, clip_on=False)
    if any(curve.spread) and style.get("linestyle") != "none":
        low, high = np.subtract(curve.mean, curve.spread), np.add(curve.mean, curve.spread)
        axes.fill_between(curve.x, low, high, color=style["color"], **BAND)
        _drawing(axes).bands.update(curve.n)
    record(axes, curve, y=y, label=style["label"], names=names)


def draw_error_bars(
    axes: Axes, curve: Curve, y: str, style: Style, names: Sequence[str] | None = None
) -> None:
    """Draw a curve as `draw_curve` does, with its spread as error bars."""
    spread = curve.spread if any(curve.spread) else None
    axes.errorbar(curve.x, curve.mean, spread, elinewidth=0.6, capsize=1.5, **style)
    if spread:
        _drawing(axes).bands.update(curve.n)
    record(axes, curve, y=y, label=style["label"], names=names)


def record(
    axes: Axes,
    curve: Curve,
    y: str,
    label: str,
    names: Sequence[str] | None = None,
    over_seeds: bool = True,
) -> None:
    """Add a curve that is drawn, or its like, to the points of the figure. Where its values are not
    those `over_seeds`, their spread and their number would be taken for these, and are left out."""
    _drawing(axes).points += [
        {
            "panel": str(axes.get_label()),
            "curve": label,
            "x": names[int(x)] if names else f"{x:.9g}",
            "measure": y,
            "value": mean,
            "deviation": spread if over_seeds and n > 1 else None,
            "n": n if over_seeds else None,
        }
        for x, mean, spread, n in zip(*curve, strict=True)
    ]


def _drawing(axes: Axes) -> Drawing:
    return cast(Drawing, axes.get_figure(root=True))


def spread_legend(figure: Drawing) -> list[Artist]:
    """What the legend says of the bands, if there are any: what they show, and of how many."""
    if not figure.bands:
        return []
    least, most = min(figure.bands), max(figure.bands)
    label = f"mean ± SD, n = {least}" + (f"–{most}" if most > least else "")
    return [Patch(**{**BAND, "color": "0.4", "label": label})]


def marked_epochs(rows: Rows) -> list[float]:
    """The epochs at which curves have markers: a few of them, evenly spread, in all panels."""
    there = sorted({row["epoch"] for row in rows})
    return list(few(there, MOST_MARKERS))


def run(row: Row) -> Run:
    """The run that a row belongs to; runs that differ in seeds alone count as one."""
    ratio: float | None = row["noise_ratio"]
    noise = str(row["checkpoint"]) if ratio is None else round(ratio, 9)
    return Run(noise, row.get("noise_kind"), row.get("model"))


def cut_name(row: Row) -> str | None:
    """The cut of a stitched model, as a legend has it; None if the row is of another network."""
    front, back = row.get("front_layer"), row.get("back_layer")
    return front if front == back else f"{front} → {back}"


def run_styles(rows: Rows) -> dict[Run, Style]:
    """A style for each run: noise ratios in ascending order, then checkpoints without one."""
    runs = sorted(groups(rows, run), key=lambda one: (isinstance(one.noise, str), one.noise))
    labels = dict(zip(runs, _labels(runs), strict=True))
    known = [one for one in runs if not isinstance(one.noise, str)]
    unknown = runs[len(known) :]
    return {
        **{one: _style(one, known) | {"label": drawable(labels[one])} for one in known},
        **styles_of(unknown, [labels[one] for one in unknown], CUT_COLORS),
    }


def _style(one: Run, runs: Sequence[Run]) -> Style:
    """The style of its noise ratio; runs that agree in it differ in their lines."""
    same = [other for other in runs if other.noise == one.noise]
    return {**noise_style(float(one.noise)), "linestyle": LINES[same.index(one) % len(LINES)]}


def _labels(runs: Sequence[Run]) -> list[str]:
    """Their noise, and as much of what they differ in as tells them apart."""
    files = [one.noise for one in runs if isinstance(one.noise, str)]
    short = dict(zip(files, short_names(files), strict=True))
    labels = [short.get(str(one.noise)) or f"{100 * float(one.noise):g}" for one in runs]
    for names in zip(*(one[1:] for one in runs), strict=True):
        if len(set(labels)) < len(runs) and len(set(names)) > 1:
            labels = [f"{label}, {name or '-'}" for label, name in zip(labels, names, strict=True)]
    return labels


def runs_title(runs: Iterable[Run]) -> str:
    """The title of a legend that lists these runs."""
    titles = ("checkpoint" if isinstance(one.noise, str) else NOISE_RATIO for one in runs)
    return " or ".join(dict.fromkeys(titles))


def require_epoch(rows: Rows) -> None:
    """Raise MemtoolError if a row's epoch is unknown."""
    for row in rows:
        if row["epoch"] is None:
            raise MemtoolError(
                f"{row['checkpoint']}: its epoch is unknown, so it has no place on the epoch axis; "
                "leave its rows out of the table"
            )
