"""Curves: the mean of a column against another, and the styles by which runs are told apart."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from memtool import MemtoolError
from memtool.figures.rows import Rows, groups
from memtool.figures.style import NOISE_COLORS, NOISE_RATIO, Style, short_name, styles_of
from memtool.tables import Row

Run = float | str  # the noise ratio that a curve stands for, or a checkpoint where it is unknown


class Curve(NamedTuple):
    """Points in ascending order of x, and how far the values at each x spread."""

    x: list[float]
    mean: list[float]
    spread: list[float]  # sample standard deviations; 0 for a single value


def curve(rows: Iterable[Row], x: str, y: str) -> Curve:
    """Column `y` against column `x`: rows that agree in `x` become one point.

    Rows with an empty cell in `y` do not count.

    >>> losses = [(1, 1.5), (1, 2.5), (2, 0.5), (3, None)]
    >>> curve([{"epoch": epoch, "loss": loss} for epoch, loss in losses], "epoch", "loss")
    Curve(x=[1, 2], mean=[2.0, 0.5], spread=[0.7071067811865476, 0.0])
    """
    present = [row for row in rows if row[y] is not None]
    points = sorted(groups(present, lambda row: row[x]).items())
    values = [[row[y] for row in group] for _, group in points]
    return Curve(
        [at for at, _ in points],
        [float(np.mean(v)) for v in values],
        [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in values],
    )


def draw_runs(
    axes: Axes, rows: Rows, x: str, y: str, styles: Mapping[Run, Style], **line: Any
) -> None:
    """Draw column `y` against column `x` with one curve per run, and its spread as a light band.

    `line` holds more keyword arguments of `Axes.plot`.
    """
    runs = groups(rows, run)
    for name, style in styles.items():
        found = curve(runs.get(name, ()), x, y)
        if not found.x:
            continue
        axes.plot(found.x, found.mean, **style, **line)
        if any(found.spread):
            low, high = np.subtract(found.mean, found.spread), np.add(found.mean, found.spread)
            axes.fill_between(found.x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def run(row: Row) -> Run:
    """The run that a row belongs to; runs that differ in the seed alone count as one."""
    ratio: float | None = row["noise_ratio"]
    return str(row["checkpoint"]) if ratio is None else ratio


def run_styles(rows: Rows) -> dict[Run, Style]:
    """A style for each run: noise ratios in ascending order, then checkpoints without one."""
    runs = sorted(groups(rows, run), key=lambda name: (isinstance(name, str), name))
    labels = [short_name(name) if isinstance(name, str) else f"{100 * name:g}" for name in runs]
    return styles_of(runs, labels, NOISE_COLORS)


def runs_title(runs: Iterable[Run]) -> str:
    """The title of a legend that lists these runs."""
    titles = ["checkpoint" if isinstance(name, str) else NOISE_RATIO for name in runs]
    return " or ".join(dict.fromkeys(titles))


def require_epoch(rows: Rows) -> None:
    """Raise MemtoolError if a row's epoch is unknown."""
    for row in rows:
        if row["epoch"] is None:
            raise MemtoolError(
                f"{row['checkpoint']}: its epoch is unknown, so it has no place on the epoch axis; "
                "leave its rows out of the table"
            )
