"""What a reproduction has found: the tables in its folder, of the runs that were chosen."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from memtool import MemtoolError, tables
from memtool.contents import read_json
from memtool.errors import shortened
from memtool.reproduction.findings import measure_findings
from memtool.reproduction.recipes import MOST_RATIOS, MOST_SEEDS
from memtool.reproduction.rules import TABLES
from memtool.reproduction.steps import tables_of
from memtool.tables import FindingRow, Row


@dataclass(frozen=True)
class Results:
    """The choices that reproduction.json holds, and the rows of the tables, by their kind."""

    folder: Path
    choices: Mapping[str, Any]
    rows: Mapping[str, Sequence[Row]]

    @cached_property
    def findings(self) -> list[FindingRow]:
        """Each claim of the paper, decided; see `measure_findings`."""
        cka = [*self.rows["cka"], *self.rows["ceiling"]]
        return measure_findings(self.rows["training"], cka, self.rows["stitching"])


def read_results(folder: Path) -> Results:
    """The results of the reproduction in a folder: of the runs that were chosen; of all that are
    there if no choices are known.

    Raises MemtoolError if there is no table, or one that cannot be read.
    """
    if folder.is_file():
        raise MemtoolError(f"{folder}: is a file; name the folder of a reproduction")
    choices = _read_choices(folder / "reproduction.json")
    rows = {kind: _rows(folder, kind, choices) for kind in TABLES}
    if not any(rows.values()):
        raise MemtoolError(
            f"{folder}: has no tables of a reproduction, such as tables/training-r0-s0.csv; make "
            f"them with memtool reproduce STUDY -o {folder}"
        )
    return Results(folder, choices, rows)


def _rows(folder: Path, kind: str, choices: Mapping[str, Any]) -> list[Row]:
    """The rows of the tables of a kind, of the runs that were chosen; of all if none are known."""
    expected = expected_tables(choices)
    return [
        row
        for path in sorted((folder / "tables").glob(TABLES[kind].glob))
        if expected is None or path.relative_to(folder) in expected
        for row in tables.read(path, TABLES[kind].row_type)
    ]


def expected_tables(choices: Mapping[str, Any]) -> list[Path] | None:
    """The tables of the runs that were chosen, run by run; None if that is not known."""
    if "ratios" not in choices or "seeds" not in choices:
        return None
    ratios, seeds = choices["ratios"], choices["seeds"]
    by_kind = tables_of(ratios, seeds, choices.get("supplement", ratios))
    return sorted((path for paths in by_kind.values() for path in paths), key=_run_of)


def _run_of(table: Path) -> str:
    """The name of the run that a table is of.

    >>> _run_of(Path("tables/cka-ceiling-s0.csv"))
    'ceiling-s0'
    """
    return table.stem.partition("-")[2]


def is_number(value: Any) -> bool:
    """Whether a value that was read is a number; True is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_percentages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MOST_RATIOS
        and all(is_number(one) and 0 <= one <= 100 for one in value)
    )


# The choices by which the report finds the tables of the runs.
SENSIBLE: Mapping[str, Callable[[Any], bool]] = {
    "ratios": _are_percentages,
    "supplement": _are_percentages,
    "seeds": lambda value: isinstance(value, int) and 1 <= value <= MOST_SEEDS,
}


def _read_choices(path: Path) -> dict[str, Any]:
    """What reproduction.json holds; empty if there is none. Raises MemtoolError if it is no JSON
    object, or what it says of the runs cannot be."""
    if not path.is_file():
        return {}
    try:
        choices = read_json(path)
    except (ValueError, OSError) as error:
        raise MemtoolError(f"{path}: cannot be read as JSON ({shortened(error)})") from error
    if not isinstance(choices, dict):
        raise MemtoolError(f"{path}: holds no JSON object")
    for name, is_sensible in SENSIBLE.items():
        if name in choices and not is_sensible(choices[name]):
            told = shortened(json.dumps(choices[name]))
            raise MemtoolError(f"{path}: {told} is no sensible {name!r}")
    return choices
