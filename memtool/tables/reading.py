"""Reading tables, as memtool, spreadsheets and other programs write them, to rows.

A table is CSV, separated by commas, semicolons or tabs, or JSON lines; UTF-8, or UTF-16 with a byte
order mark. Empty rows, a line `sep=;` and repeated headers, as of tables that `cat` joined, are
skipped. Where a comma separates no cells it is a decimal comma.
"""

import codecs
import csv
import io
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from memtool import MemtoolError
from memtool.contents import check_regular, limited
from memtool.device import machine_memory
from memtool.errors import shortened
from memtool.tables.rows import CELL_TYPES
from memtool.tables.schema import checked, columns

STREAMS = ("/dev/fd/", "/dev/stdin")  # pipes that a shell has opened, as for <(cut ...)
SHARE = 16  # the rows of a table take some ten times the memory of its text


class Line(dict[str, Any]):
    """A row that knows where it was read, such as "rows.csv, line 3"."""

    place = ""


def read(path: Path | None, row_type: type | None = None) -> list[dict[str, Any]]:
    """The rows of a table, as `Line`s; None is stdin.

    Cells become int or float where they are finite numbers, bool where they are true or false, None
    where they are empty; but those of columns that `tables.rows` declares as text remain text. No
    cell is refused here, since a figure checks those that it needs, but with a `row_type`, whose
    columns have cells of the declared types alone. Raises MemtoolError, naming the file and the
    line, for such a cell, for anything else than a table, and for one larger than a SHARE-th of the
    memory.
    """
    name = "stdin" if path is None else str(path)
    rows: list[dict[str, Any]] = []
    if path and not str(path).startswith(STREAMS):
        check_regular(path)
    try:
        with nullcontext(sys.stdin.buffer) if path is None else open(path, "rb") as file:
            content = limited(file, machine_memory() // SHARE)
        for number, row in _parsed(_decoded(content)):
            rows.append(Line(row))
            rows[-1].place = f"{name}, line {number}"  # type: ignore[attr-defined]
    except FileNotFoundError as error:
        raise MemtoolError(f"{name}: no such file") from error
    except UnicodeError as error:
        raise MemtoolError(
            f"{name}: cannot be read as text ({error}); a table is saved as UTF-8"
        ) from error
    except OSError as error:
        told = error.strerror or error
        raise MemtoolError(f"{name}: cannot be read as text ({told})") from error
    except ValueError as error:
        raise MemtoolError(f"{name}: not a table ({error})") from error
    if not rows:
        raise MemtoolError(f"{name}: holds no rows")
    if row_type:
        _check_cells(row_type, rows)
    return rows


def _check_cells(row_type: type, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        for column in [name for name in row if name in columns(row_type)]:
            try:
                row[column] = checked(row_type, column, row[column])
            except ValueError as error:
                place = row.place  # type: ignore[attr-defined]
                raise MemtoolError(f"{place}, column {column}: {error}") from error


MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _decoded(content: bytes) -> str:
    return content.decode("utf-16" if content.startswith(MARKS) else "utf-8-sig")


def _parsed(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows, each with the number of its line, counted from 1."""
    return _json_rows(text) if text.lstrip().startswith(("{", "[")) else _delimited_rows(text)


def _json_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines, which also ends lines at characters that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if line := line.strip().lstrip("\ufeff"):
            yield number, _json_row(number, line)


def _json_row(number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(
            line, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_constant
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}, character {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number}: {shortened(error)}") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no JSON object: each row is one, on a line of its own")
    return row


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    _check_unique([name for name, _ in pairs])
    return dict(pairs)


def _check_unique(columns: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in columns:
        if name in seen:
            raise ValueError(f"the column {shortened(name)} occurs twice")
        seen.add(name)


def _finite(text: str) -> float | str:
    """The number, or the text where it is too large for one."""
    return value if math.isfinite(value := float(text)) else text


def _constant(text: str) -> str | None:
    """What programs write for JSON although it has no such number; NaN is an empty cell."""
    return None if text == "NaN" else text


def _delimited_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = io.StringIO(text, newline="")
    delimiter = _delimiter(lines)
    lines.seek(0)
    columns: list[str] | None = None
    for number, cells in _numbered(csv.reader(lines, delimiter=delimiter, strict=True)):
        names = [cell.replace("\ufeff", "").strip(" \t") for cell in cells]
        if not any(names) or SEPARATOR.match(delimiter.join(names)):
            continue
        if columns is None or _is_header(names, columns):
            columns = _header(number, names)
        else:
            yield number, _row(number, columns, cells, decimal_comma=delimiter != ",")


# The first line of a file for Excel.
SEPARATOR = re.compile(r'\ufeff?"?sep=([^"\r\n])"?[,;\t]*\s*$', re.IGNORECASE | re.MULTILINE)


def _delimiter(lines: io.StringIO) -> str:
    """What separates cells: as a line `sep=` says, else what makes the most of the header."""
    for line in lines:
        if told := SEPARATOR.match(line):
            return told[1]
        if line.strip(',;"\ufeff' + " \t\r\n"):
            return max(",;\t", key=line.count)
    return ","


def _numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Each line's cells, with the number of the line that they begin on."""
    number = 1
    try:
        for cells in reader:
            yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {number}: {error}") from error


def _is_header(names: Sequence[str], columns: Sequence[str]) -> bool:
    """Whether a line is a header again, be it that of another table."""
    found = [name for name in names if name]
    return found == [name for name in columns if name] or (
        len(found) > 1 and all(name in CELL_TYPES for name in found)
    )


def _header(number: int, names: Sequence[str]) -> list[str]:
    """The columns; those without a name are empty, and none at the end."""
    try:
        _check_unique([name for name in names if name])
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error
    last = max(i for i, name in enumerate(names) if name)
    return list(names[: last + 1])


def _row(
    number: int, columns: Sequence[str], cells: Sequence[str], decimal_comma: bool
) -> dict[str, Any]:
    if len(cells) < len(columns) or any(cell.strip() for cell in cells[len(columns) :]):
        raise ValueError(f"line {number} has {len(cells)} cells, the header {len(columns)}")
    return {
        column: _value(cell, CELL_TYPES.get(column), decimal_comma)
        for column, cell in zip(columns, cells, strict=False)
        if column  # pandas, for one, numbers rows in a column without a name
    }


# Python's int and float take more: 1_000, padded numbers, other scripts' digits.
INTEGER = re.compile(r"-?(0|[1-9]\d{0,99})", re.ASCII)
NUMBER = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
DECIMAL_COMMA = re.compile(r"(\s*[+-]?\d*),(\d+([eE][+-]?\d+)?\s*)", re.ASCII)


def _value(
    cell: str, kind: type | None = None, decimal_comma: bool = False
) -> bool | int | float | str | None:
    if cell == "" or kind is str:
        return cell or None
    if cell in ("true", "false"):
        return cell == "true"
    if decimal_comma:
        cell = DECIMAL_COMMA.sub(r"\1.\2", cell) if DECIMAL_COMMA.fullmatch(cell) else cell
    if INTEGER.fullmatch(cell):
        return int(cell)
    return _finite(cell) if NUMBER.fullmatch(cell) else cell
