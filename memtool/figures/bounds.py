"""What a value of CKA is held against: a floor and a ceiling.

The floor is what unrelated layers of these networks have in expectation, the column `cka_null`. The
ceiling is the CKA of a second clean network, of other batches or initial weights, to the clean one:
what does not fall below that has not diverged.
"""

from collections.abc import Callable, Iterable, Sequence

from matplotlib.axes import Axes

from memtool.figures.colors import Style
from memtool.figures.curves import Curve, curve, record
from memtool.figures.rows import Rows, groups
from memtool.tables import Row

FLOOR: Style = {"color": "0.45", "linewidth": 0.6, "label": "floor: unrelated features"}
CEILING: Style = {
    **{"color": "black", "linestyle": ":", "linewidth": 1.1, "zorder": 3},
    "label": "ceiling: second clean network",
}


def without_ceiling(rows: Rows, other_run: Callable[[Row], bool]) -> tuple[list[Row], list[Row]]:
    """The rows of all other networks, and those of second clean ones.

    `other_run` tells whether a row compares networks of two runs. Rows of clean networks alone are
    no ceiling of anything.
    """
    second = [_is_clean(row) and other_run(row) for row in rows]
    if all(second):
        return list(rows), []
    return (
        [row for row, is_second in zip(rows, second, strict=True) if not is_second],
        [row for row, is_second in zip(rows, second, strict=True) if is_second],
    )


def _is_clean(row: Row) -> bool:
    return row["noise_ratio"] == 0 == row["reference_noise_ratio"] and row["front_layer"] is None


def draw_ceiling(axes: Axes, rows: Rows, x: str, names: Sequence[str] | None = None) -> None:
    """Draw the CKA of second clean networks: the mean over all; one epoch alone is a level line."""
    ceiling = curve(rows, x, "cka")
    _draw(axes, ceiling, style=CEILING, x=x)
    record(axes, ceiling, y="cka", label=str(CEILING["label"]), names=names)


def draw_floor(axes: Axes, rows: Rows, x: str, names: Sequence[str] | None = None) -> None:
    """Draw the floor of the rows: the mean of `cka_null` over all at each x."""
    floor = _mean_floor(rows, x)
    if any(floor.mean):  # where it is 0, it is no line of its own, nor in the legend
        _draw(axes, floor, style=FLOOR, x=x)
    record(axes, floor, y="cka_null", label=str(FLOOR["label"]), names=names, over_seeds=False)


def _draw(axes: Axes, bound: Curve, style: Style, x: str) -> None:
    if len(bound.x) == 1 and x == "epoch":
        axes.axhline(bound.mean[0], **style)
    elif bound.x:
        # A line of one point would not be seen.
        dash: Style = {"marker": "_", "markersize": 12} if len(bound.x) == 1 else {}
        axes.plot(bound.x, bound.mean, **style | dash)


def _mean_floor(rows: Iterable[Row], x: str) -> Curve:
    present = groups((r for r in rows if r["cka_null"] is not None), lambda r: r[x])
    return Curve.of({at: [row["cka_null"] for row in group] for at, group in present.items()})


def styles_of_bounds(rows: Rows, ceiling: Rows) -> list[Style]:
    """What the legend lists of both."""
    # A floor of 0, that of the unbiased estimators, is the axis.
    has_floor = any(row["cka_null"] for row in rows)
    return [*([CEILING] if ceiling else []), *([FLOOR] if has_floor else [])]
