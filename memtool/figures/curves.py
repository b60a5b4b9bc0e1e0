"""Curves: the mean of a column against another, and the styles by which runs are told apart."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from memtool import MemtoolError
from memtool.errors import shortened
from memtool.figures.rows import Rows, groups
from memtool.figures.style import NOISE_COLORS, NOISE_RATIO, Style, short_name, styles_of
from memtool.tables import Row

NETWORKS = ("checkpoint", "front", "back", "reference")  # the columns that name files
ENDS = f"{NOISE_RATIO}, front → back"


class Run(NamedTuple):
    """What a curve stands for: all that tells runs apart but their seeds.

    `noise` is the noise ratio, that of both ends of a stitched model, or the checkpoint where
    neither is known. The rest is None where it is unknown.
    """

    noise: float | tuple[float, float] | str
    cut: str | None = None
    noise_kind: str | None = None
    model: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Each field as a legend has it."""
        if isinstance(self.noise, str):
            noise = short_name(self.noise)
        else:
            ends = self.noise if isinstance(self.noise, tuple) else [self.noise]
            noise = " → ".join(f"{100 * ratio:g}" for ratio in ends)
        return noise, *(part or "" for part in self[1:])


class Curve(NamedTuple):
    """Points in ascending order of x, and how far the values at each x spread."""

    x: list[float]
    mean: list[float]
    spread: list[float]  # sample standard deviations; 0 for a single value


def curve(rows: Iterable[Row], x: str, y: str) -> Curve:
    """Column `y` against column `x`: rows that agree in `x` become one point.

    Rows with an empty cell in `y` do not count. Raises MemtoolError if other rows become one point
    than those of different seeds.

    >>> losses = [(1, 0, 1.5), (1, 1, 2.5), (2, 0, 0.5), (3, 0, None)]
    >>> rows = [{"epoch": epoch, "seed": seed, "loss": loss} for epoch, seed, loss in losses]
    >>> curve(rows, "epoch", "loss")
    Curve(x=[1, 2], mean=[2.0, 0.5], spread=[0.7071067811865476, 0.0])
    """
    present = [row for row in rows if row[y] is not None]
    points = sorted(groups(present, lambda row: row[x]).items())
    values = [[row[y] for row in one_per_seed(group, y)] for _, group in points]
    return Curve(
        [at for at, _ in points],
        [float(np.mean(v)) for v in values],
        [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in values],
    )


def one_per_seed(rows: Iterable[Row], y: str) -> list[Row]:
    """The rows, of which there is one for each seed: those that only repeat another are left out.

    Every column whose name ends in `seed` is one. Raises MemtoolError, which names both, for two
    rows of equal seeds that are about different networks, or that differ in column `y`.
    """
    found: dict[Hashable, Row] = {}
    for row in rows:
        seeds = tuple(value for column, value in row.items() if column.endswith("seed"))
        _check_repeats(found.setdefault(seeds, row), row, y)
    return list(found.values())


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
        named = ", ".join(shortened(row[column], 100) for column in NETWORKS if row.get(column))
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
    """The run that a row belongs to; runs that differ in seeds alone count as one."""
    ratio: float | None = row["noise_ratio"]
    ends = row.get("front_noise_ratio"), row.get("back_noise_ratio")
    if None not in ends:
        noise: Any = ends
    else:
        noise = str(row["checkpoint"]) if ratio is None else ratio
    # Without noise there is no kind of noise, but a row may name one all the same.
    kind = row.get("noise_kind") if ratio else None
    return Run(noise, cut_name(row), kind, row.get("model"))


def cut_name(row: Row) -> str | None:
    """The cut of a stitched model, as a legend has it; None if the row is of another network."""
    front, back = row.get("front_layer"), row.get("back_layer")
    return front if front == back else f"{front} → {back}"


def run_styles(rows: Rows) -> dict[Run, Style]:
    """A style for each run: noise ratios in ascending order, those of stitched models, then
    checkpoints without one."""
    runs = sorted(groups(rows, run), key=lambda one: (_rank(one), one.noise))
    return styles_of(runs, _labels(runs), NOISE_COLORS)


def _rank(one: Run) -> int:
    return [float, tuple, str].index(float if isinstance(one.noise, int) else type(one.noise))


def _labels(runs: Sequence[Run]) -> list[str]:
    """Their noise, and as much of what they differ in as tells them apart."""
    first, *rest = zip(*(one.names for one in runs), strict=True)
    labels = list(first)
    for names in rest:
        if len(set(labels)) < len(runs) and len(set(names)) > 1:
            labels = [f"{label}, {name or '-'}" for label, name in zip(labels, names, strict=True)]
    return labels


def runs_title(runs: Iterable[Run]) -> str:
    """The title of a legend that lists these runs."""
    titles = {0: NOISE_RATIO, 1: ENDS, 2: "checkpoint"}
    return " or ".join(dict.fromkeys(titles[_rank(one)] for one in runs))


def require_epoch(rows: Rows) -> None:
    """Raise MemtoolError if a row's epoch is unknown."""
    for row in rows:
        if row["epoch"] is None:
            raise MemtoolError(
                f"{row['checkpoint']}: its epoch is unknown, so it has no place on the epoch axis; "
                "leave its rows out of the table"
            )
