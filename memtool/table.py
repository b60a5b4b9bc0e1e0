"""Rows and tables: one measurement with all its conditions a row, as CSV, TSV, JSON lines or text.

A row maps column names to str, int, float, bool or None (an empty cell). Column names are an
interface: they are fixed here and pinned by a test.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    "parameters start epochs learning_rate batch_size seed n loss test_accuracy front_accuracy "
    "back_accuracy agreement"
).split()
FILES = (
    "file kind model data train test classes epoch steps noise_ratio noise_kind seed tensors "
    "elements bytes loss given_accuracy true_accuracy mislabelled_accuracy test_accuracy"
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
    suffix = path.suffix.removeprefix(".")
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
                stream.write(render(rows, columns))
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


def render(rows: Sequence[Row], columns: Sequence[str], width: int | None = None) -> str:
    """Rows as a table for a terminal, `width` characters wide (the terminal's own by default).

    Numbers have four digits and checkpoints lose their suffix; columns that hold one value
    throughout are told once, above the table; where it would be too wide, MINOR columns are left
    out, which is told below it.
    """
    from rich.console import Console
    from rich.table import Table

    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=sys.stdout.isatty(),
        highlight=False,
        markup=False,
        emoji=False,
    )
    cells = {column: [_short(row.get(column)) for row in rows] for column in columns}
    constant = [column for column in columns if len(rows) > 1 and len(set(cells[column])) == 1]
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


# What a narrow terminal leaves out, the first one first.
MINOR = (
    "bytes elements tensors loss classes train test kind parameters connector agreement "
    "reference_epoch reference_seed reference_noise_ratio back_layer true_accuracy "
    "back_noise_ratio front_noise_ratio noise_kind seed same_as steps noise_ratio back model"
).split()


def _title(column: str) -> str:
    return column.replace("_", " ")


def _widest(column: str, cells: Mapping[str, Sequence[str]]) -> int:
    """The least width of a column that breaks neither a cell nor a word of its title."""
    return max(map(len, [*cells[column], *column.split("_")]))


def _width(columns: Sequence[str], cells: Mapping[str, Sequence[str]]) -> int:
    return sum(_widest(column, cells) + 2 for column in columns) - 2


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
        text = sys.stdin.read() if path is None else path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MemtoolError(f"{name}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise MemtoolError(f"{name}: cannot be read as text ({error})") from error
    try:
        rows = list(_parsed(text))
    except (ValueError, csv.Error) as error:
        raise MemtoolError(f"{name}: not a table ({error})") from error
    if not rows:
        raise MemtoolError(f"{name}: holds no rows")
    return rows


def _parsed(text: str) -> Iterable[dict[str, Any]]:
    if text.startswith("{"):
        return [json.loads(line) for line in text.splitlines() if line]
    header = text.partition("\n")[0]
    delimiter = "\t" if "\t" in header else ","
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = next(lines, [])
    return [
        {column: _value(cell) for column, cell in zip(columns, line, strict=True)} for line in lines
    ]


def _value(cell: str) -> bool | int | float | str | None:
    if cell in ("", "true", "false"):
        return {"": None, "true": True, "false": False}[cell]
    for number in (int, float):
        try:
            return number(cell)
        except ValueError:
            pass
    return cell
