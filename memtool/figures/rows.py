"""Rows as figures use them: which columns a figure needs of its table, and grouping."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from memtool import MemtoolError, tables
from memtool.errors import shortened, some
from memtool.tables import Row

Rows = Sequence[Row]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Needs:
    """What a figure needs of a table, declared once.

    `select` gives a figure these columns and no others, so the declaration is complete: reading a
    column that is not declared is a KeyError.

    Raises ValueError if `row_type`, as `memtool.tables` declares it, lacks one of the columns.
    """

    row_type: type
    columns: tuple[str, ...]  # each row must have them; cells may be empty unless they are names
    conditions: tuple[str, ...]  # must not differ between rows, since means over them would mislead
    optional: tuple[str, ...] = ()  # taken where the table has them

    def __post_init__(self) -> None:
        if unknown := set(self.names) - tables.columns(self.row_type).keys():
            raise ValueError(f"{self.row_type.__name__} has no column {', '.join(sorted(unknown))}")

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are declared; some may be declared twice."""
        return (*self.columns, *self.conditions, *self.optional)

    def select(self, rows: Rows) -> list[Row]:
        """The rows with the declared columns alone, their cells of the types that the table
        declares; None in those that a row lacks.

        The kind of noise of a network without any is None, whatever its row names.

        Raises MemtoolError, naming line and column, for a cell of another type, but in a condition,
        and for an empty one that has to name a file or a layer.
        """
        return [self._selected(row, number) for number, row in enumerate(rows, 1)]

    def _selected(self, row: Row, number: int) -> Row:
        cells = {name: self._cell(row, name, number) for name in self.names}
        for name in self.names:
            if name.endswith("noise_kind") and cells.get(name.replace("kind", "ratio")) == 0:
                cells[name] = None
        return cells

    def _cell(self, row: Row, column: str, number: int) -> Any:
        try:
            cell = tables.checked(self.row_type, column, row.get(column))
            if cell is None and column in self.columns and tables.is_name(self.row_type, column):
                raise ValueError("is empty; every row has to name one")
            return cell
        except ValueError as error:
            if column in self.conditions:  # whatever it is, it may only not differ
                return shortened(row[column])
            place = getattr(row, "place", f"row {number}")
            raise MemtoolError(f"{place}, column {column}: {error}") from error

    def check_columns(self, rows: Rows, kind: str) -> None:
        """Raise MemtoolError, which names the figure's `kind`, if a column is missing."""
        present = common_columns(rows)
        if missing := [name for name in self.columns if name not in present]:
            for number, row in enumerate(rows, 1):
                lacks = [name for name in missing if name not in row]
                if lacks and any(set(lacks) <= set(other) for other in rows):
                    raise MemtoolError(
                        f"{kind}: {getattr(row, 'place', f'row {number}')} has no column "
                        f"{listed(lacks)}, which other rows have; leave out what is of another kind"
                    )
            raise MemtoolError(
                f"{kind}: the table has no column {', '.join(missing)} "
                f"(it has {listed(sorted(present)) or 'no rows'})"
            )

    def check_conditions(self, selected: Rows, kind: str) -> None:
        """Raise MemtoolError, likewise, if a condition differs between rows from `select`."""
        for name in self.conditions:
            values = _values(selected, name)
            if len(values) > 1:
                raise MemtoolError(
                    f"{kind}: the rows differ in {name} ({listed(values)}), and a figure shows "
                    "one of them; make a table for each"
                )


def _values(rows: Rows, condition: str) -> list[str]:
    """The different values of a condition, sorted."""
    return sorted({str(row[condition]) for row in rows if row[condition] is not None})


def listed(values: Sequence[str]) -> str:
    """The first of the values, each shortened: an error message has no room for all."""
    return some([shortened(value, 30) for value in values], 10)


def common_columns(rows: Rows) -> set[str]:
    """The columns that every row has."""
    return set.intersection(*map(set, rows)) if rows else set()


def usable(rows: Rows, column: str) -> list[Row]:
    """The rows that have a value in the column; raises MemtoolError if there are none."""
    found = [row for row in rows if row[column] is not None]
    if not found:
        raise MemtoolError(f"no row has a value in the column {column}: there is nothing to draw")
    return found


def groups(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    """The rows by key, with the keys in order of first appearance.

    Layers thus stay in order of execution.

    >>> groups([{"layer": "conv"}, {"layer": "fc"}, {"layer": "conv"}], lambda row: row["layer"])
    {'conv': [{'layer': 'conv'}, {'layer': 'conv'}], 'fc': [{'layer': 'fc'}]}
    """
    result: dict[Key, list[Row]] = {}
    for row in rows:
        result.setdefault(key(row), []).append(row)
    return result


def in_order(
    rows: Rows, network: Callable[[Row], Hashable], name: Callable[[Row], Any]
) -> list[Row]:
    """The rows by the `name` of their layer or cut, in the order of execution that the rows of each
    `network` are in: those of one need not have all layers, and of these not all have values.

    >>> rows = [{"of": "a", "layer": "conv"}, {"of": "a", "layer": "fc"}]
    >>> rows += [{"of": "b", "layer": layer} for layer in ("conv", "bn", "fc")]
    >>> ordered = in_order(rows, lambda row: row["of"], lambda row: row["layer"])
    >>> [row["layer"] for row in ordered]
    ['conv', 'conv', 'bn', 'fc', 'fc']
    """
    orders = {tuple(dict.fromkeys(map(name, group))) for group in groups(rows, network).values()}
    merged: list[Any] = []
    for order in sorted(orders, key=lambda order: (-len(order), order)):
        place = 0
        for one in order:
            if one not in merged:
                merged.insert(place, one)
            place = merged.index(one) + 1
    places = {one: place for place, one in enumerate(merged)}
    return sorted(rows, key=lambda row: places[name(row)])


def positions(rows: Iterable[Row], column: str) -> dict[str, int]:
    """The position on an axis, counted from 0, of each name in the column.

    >>> positions([{"layer": "conv"}, {"layer": "fc"}, {"layer": "conv"}], "layer")
    {'conv': 0, 'fc': 1}
    """
    names = dict.fromkeys(row[column] for row in rows)
    return {name: position for position, name in enumerate(names)}
