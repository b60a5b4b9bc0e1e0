"""The rows that one asks for: of some layers, noise ratios and epochs."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from memtool import MemtoolError
from memtool.figures.options import LAST
from memtool.figures.rows import Rows, groups, listed
from memtool.figures.stages import marked
from memtool.tables import Row

T = TypeVar("T")


def of_layers(rows: Rows, patterns: Sequence[str], column: str = "layer") -> list[Row]:
    """The rows whose layer matches any of the globs; all rows without globs.

    Raises MemtoolError for a glob that matches no layer.
    """
    names = list(dict.fromkeys(row[column] for row in rows))
    found = {names[at] for at in marked(names, patterns, "layer")} if patterns else set(names)
    return [row for row in rows if row[column] in found]


def of_ratios(
    rows: Rows, ratios: Sequence[float], ratio: Callable[[Row], float | None]
) -> list[Row]:
    """The rows of these noise ratios, of which `ratio` tells a row's; all rows without any.

    Raises MemtoolError for a ratio that no row has.
    """
    if not ratios:
        return list(rows)
    there = {found for row in rows if (found := ratio(row)) is not None}
    for one in ratios:
        if not any(_equal(one, other) for other in there):
            known = listed([f"{100 * other:g}%" for other in sorted(there)])
            raise MemtoolError(f"no row has the noise ratio {100 * one:g}%; there are {known}")
    return [row for row in rows if any(_equal(one, ratio(row)) for one in ratios)]


def of_epochs(rows: Rows, epochs: Sequence[int | str], run: Callable[[Row], Hashable]) -> list[Row]:
    """The rows of these epochs; all rows without any, or with `all` among them.

    `last` is the last epoch of each run, of which `run` tells a row's. Raises MemtoolError for an
    epoch that no row has.
    """
    if not epochs or "all" in epochs:
        return list(rows)
    there = sorted({row["epoch"] for row in rows if row["epoch"] is not None})
    for one in epochs:
        if one != LAST and one not in there:
            raise MemtoolError(
                f"no row is of epoch {one}; there are {listed([str(epoch) for epoch in there])}"
            )
    last = {key: max(map(_epoch, group)) for key, group in groups(rows, run).items()}
    return [
        row
        for row in rows
        if row["epoch"] in epochs or (LAST in epochs and _epoch(row) == last[run(row)])
    ]


def few(values: Sequence[T], most: int) -> tuple[T, ...]:
    """At most so many of the values, evenly chosen, the first and the last among them.

    >>> few([5, 10, 15, 20], 3)
    (5, 15, 20)
    """
    count = min(most, len(values))
    places = [round(at * (len(values) - 1) / max(count - 1, 1)) for at in range(count)]
    return tuple(values[place] for place in places)


def _equal(one: float, other: float | None) -> bool:
    return other is not None and abs(one - other) < 1e-9


def _epoch(row: Row) -> Any:
    """The epoch of a row; -1 if it is unknown, so that it is the last where none is known."""
    return -1 if row["epoch"] is None else row["epoch"]
