"""Reading tables: CSV, TSV or JSON lines, of memtool or of other programs, to rows."""

import csv
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memtool import MemtoolError


def read(path: Path | None) -> list[dict[str, Any]]:
    """The rows of a table, CSV, TSV or JSON lines by its first line; None is stdin.

    Cells become int or float where they are numbers, None where they are empty. Raises
    MemtoolError, naming the file, for anything else than a table.
    """
    name = "stdin" if path is None else str(path)
    try:
        content = sys.stdin.buffer.read() if path is None else path.read_bytes()
        rows = _parsed(content.decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise MemtoolError(f"{name}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise MemtoolError(f"{name}: cannot be read as text ({error})") from error
    except (ValueError, csv.Error) as error:
        raise MemtoolError(f"{name}: not a table ({error})") from error
    if not rows:
        raise MemtoolError(f"{name}: holds no rows")
    return rows


def _parsed(text: str) -> list[dict[str, Any]]:
    if text.startswith("{"):
        # Not splitlines, which also ends lines at characters that JSON strings may hold.
        return [
            _json_row(number, line)
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip()
        ]
    header = text.partition("\n")[0]
    delimiter = "\t" if "\t" in header else ","
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = next(lines, [])
    return [_row(lines.line_num, columns, line) for line in lines if line]


def _json_row(number: int, line: str) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no JSON object")
    return row


def _row(number: int, columns: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    if len(cells) != len(columns):
        raise ValueError(f"line {number} has {len(cells)} cells, the header {len(columns)}")
    return {column: _value(cell) for column, cell in zip(columns, cells, strict=True)}


# Python's int and float take more: 1_000, padded numbers, other scripts' digits.
INTEGER = re.compile(r"-?(0|[1-9]\d*)", re.ASCII)
NUMBER = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?|-?inf|nan", re.ASCII)


def _value(cell: str) -> bool | int | float | str | None:
    if cell in ("", "true", "false"):
        return {"": None, "true": True, "false": False}[cell]
    if INTEGER.fullmatch(cell):
        return int(cell)
    return float(cell) if NUMBER.fullmatch(cell) else cell
