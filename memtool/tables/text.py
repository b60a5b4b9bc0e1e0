"""Rows and tables: one measurement with all its conditions a row, as CSV, TSV, JSON lines or text.

A row maps column names to str, int, float, bool or None (an empty cell). Column names are an
interface: they are fixed here and pinned by a test.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

from memtool import MemtoolError
from memtool.files import replacing

Row = Mapping[str, Any]

TRAINING = (
    "checkpoint model data noise_ratio noise_kind seed epoch loss given_accuracy true_accuracy "
    "mislabelled_accuracy test_accuracy"
).split()
CKA = (
    "checkpoint reference layer reference_layer epoch noise_ratio seed reference_epoch "
    "reference_noise_ratio reference_seed estimator kernel bandwidth precision n batch_size "
    "sample_seed cka cka_se"
).split()
STITCHING = (
    "front back direction front_layer back_layer front_noise_ratio back_noise_ratio connector "
    "batch_norm parameters start optimizer epochs epoch learning_rate batch_size seed n loss "
    "test_accuracy front_accuracy back_accuracy agreement control_accuracy"
).split()
FILES = (
    "file kind model model_from parameters tensors types bytes data train test classes image_shape "
    "mean std fingerprint epoch steps noise_ratio noise_kind seed loss given_accuracy "
    "true_accuracy mislabelled_accuracy test_accuracy"
).split()
LAYERS = "checkpoint layer type shape cut same_as".split()


class Format(StrEnum):
    """How rows are written."""

    csv = "csv"
    tsv = "tsv"
    jsonl = "jsonl"
    table = "table"


Writer = Callable[[Row], None]


def format_of(path: Path | None, chosen: Format | None) -> Format:
    """The format chosen, else the one the suffix of `path` says, else a table on a terminal and
    CSV everywhere else. Raises MemtoolError for a suffix that says none."""
    if chosen:
        return chosen
    if path is None:
        return Format.table if sys.stdout.isatty() else Format.csv
    suffix = path.suffix.removeprefix(".").lower()
    if suffix in Format.__members__ and suffix != Format.table:
        return Format(suffix)
    if suffix in ("", "txt") or not path.is_file() and path.exists():
        return Format.csv
    raise MemtoolError(
        f"{path}: the suffix says no table format; end it in .csv, .tsv or .jsonl, or pass --format"
    )


@contextmanager
def writer(columns: Sequence[str], path: Path | None, chosen: Format | None) -> Iterator[Writer]:
    """Yield a function that writes one row: to `path`, whole or not at all, or to stdout at once.

    A terminal's table waits for the last row, to know how wide its columns are.
    """
    format = format_of(path, chosen)
    if path is None:
        with _writer_to(sys.stdout, columns, format) as write:
            yield write
        return
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        with _writer_to(file, columns, format) as write:
            yield write


@contextmanager
def _writer_to(stream: TextIO, columns: Sequence[str], format: Format) -> Iterator[Writer]:
    def write_line(row: Row) -> None:
        if format is Format.jsonl:
            content = {column: row.get(column) for column in columns}
            stream.write(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
        else:
            delimited.writerow([_cell(row.get(column)) for column in columns])
        stream.flush()

    if format is Format.table:
        rows: list[Row] = []
        try:
            yield rows.append
        finally:  # what there is, even if the work was stopped
            if rows:
                stream.write(render(rows, columns, styled=stream.isatty()))
                stream.flush()
        return
    # csv writes \r\n unless told otherwise, and cut and awk would see the stray character.
    delimited = csv.writer(
        stream, delimiter="\t" if format is Format.tsv else ",", lineterminator="\n"
    )
    if format is not Format.jsonl:
        delimited.writerow(columns)
        stream.flush()
    yield write_line


def _cell(value: Any) -> str:
    """A value at full precision; empty for None."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def render(
    rows: Sequence[Row], columns: Sequence[str], width: int | None = None, styled: bool = False
) -> str:
    """Rows as a table for a terminal, `width` characters wide (the terminal's own by default), its
    titles in bold if `styled`.

    Numbers have four digits and checkpoints lose their suffix; columns that hold one value
    throughout are told once, above the table; where it would be too wide, MINOR columns are left
    out, which is told below it. A single row is a line for each of its values.
    """
    if len(rows) == 1:
        return _list(rows[0], columns)
    from rich.console import Console
    from rich.table import Table

    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=styled,
        highlight=False,
        markup=False,
        emoji=False,
    )
    cells = {column: [_short(row.get(column)) for row in rows] for column in columns}
    constant = [column for column in columns if len(set(cells[column])) == 1]
    if told := [f"{_title(name)} {cells[name][0]}" for name in constant if cells[name][0]]:
        console.print(", ".join(told) + "\n")
    shown = [column for column in columns if column not in constant]
    if cells.get("layer") == cells.get("reference_layer"):
        shown = [column for column in shown if column != "reference_layer"]
    left_out = []
    for column in MINOR:
        if column in shown and _width(shown, cells) > console.width:
            shown.remove(column)
            left_out.append(_title(column))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in shown:
        number = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(
            _title(column),
            justify="right" if number else "left",
            width=min(_widest(column, cells), console.width // 2),
            overflow="fold",
        )
    for line in zip(*(cells[column] for column in shown), strict=True):
        table.add_row(*line)
    console.print(table)
    if left_out:
        console.print(f"\n(not shown for want of width: {', '.join(left_out)})")
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _list(row: Row, columns: Sequence[str]) -> str:
    """The values of one row that has them, each below the other."""
    values = {_title(column): _whole(row.get(column)) for column in columns}
    width = max(map(len, values), default=0)
    return "".join(f"{title:{width}}  {value}\n" for title, value in values.items() if value)


# What a narrow terminal leaves out, the first one first.
MINOR = (
    "fingerprint mean std types bytes image_shape model_from tensors loss classes train test kind "
    "parameters connector agreement reference_epoch reference_seed reference_noise_ratio "
    "back_layer true_accuracy back_noise_ratio front_noise_ratio noise_kind seed same_as steps "
    "noise_ratio back model"
).split()


def _title(column: str) -> str:
    return column.replace("_", " ")


def _widest(column: str, cells: Mapping[str, Sequence[str]]) -> int:
    """The least width of a column that breaks neither a cell nor a word of its title."""
    return max(map(len, [*cells[column], *column.split("_")]))


def _width(columns: Sequence[str], cells: Mapping[str, Sequence[str]]) -> int:
    return sum(_widest(column, cells) + 2 for column in columns) - 2


def _whole(value: Any) -> str:
    """A value with room enough: only numbers are shortened."""
    return _short(value) if isinstance(value, bool | float) else _cell(value)


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-4 <= abs(value) < 1e4 and value % 1 else f"{value:.4g}"
    return _cell(value).removesuffix(".safetensors")


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
