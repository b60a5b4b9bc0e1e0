"""Writing rows: as CSV, TSV or JSON lines, one at a time, or as a table for a terminal."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TextIO

from memtool import MemtoolError
from memtool.errors import printable
from memtool.files import replacing
from memtool.paths import is_special
from memtool.tables.schema import Column, columns
from memtool.tables.terminal import cell, render

Row = Mapping[str, Any]
Writer = Callable[[Mapping[str, object]], None]


class Stream(Protocol):
    """What rows are written to."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> None: ...
    def isatty(self) -> bool: ...


class Format(StrEnum):
    """How rows are written."""

    csv = "csv"
    tsv = "tsv"
    jsonl = "jsonl"
    table = "table"


def format_by_suffix(path: Path) -> Format | None:
    """The format that the suffix of a file of rows says; None for any other file.

    >>> format_by_suffix(Path("a.CSV")), format_by_suffix(Path("a.table"))
    (<Format.csv: 'csv'>, None)
    """
    suffix = path.suffix.removeprefix(".").lower()
    return Format(suffix) if suffix in Format.__members__ and suffix != Format.table else None


def format_of(path: Path | None, chosen: Format | None) -> Format:
    """The format chosen, else the one that the suffix of `path` says, else a table on a terminal
    and CSV everywhere else. Raises MemtoolError for a suffix that says none."""
    if chosen:
        return chosen
    if path is None:
        return Format.table if stdout().isatty() else Format.csv
    if found := format_by_suffix(path):
        return found
    if path.suffix.lower() in ("", ".txt") or path.is_dir() or is_special(path):
        return Format.csv
    raise MemtoolError(
        f"{path}: the suffix says no table format; end it in .csv, .tsv or .jsonl, or pass --format"
    )


@contextmanager
def writer(
    table: type | Sequence[str],
    path: Path | None,
    chosen: Format | None,
    *,
    byproduct: bool = False,
) -> Iterator[Writer]:
    """Yield a function that writes one row: to `path`, whole or not at all, or to stdout at once.

    `table` is the type of its rows, as `tables.rows` declares it, or the names of its columns. A
    row with other keys is a mistake of the program and raises ValueError. A terminal's table waits
    for the last row, to know how wide its columns are.

    If whoever reads stdout closes it, as `head` does, BrokenPipeError ends the work; but not where
    the rows are a `byproduct` of work that has more to leave behind: then they go nowhere.
    """
    format = format_of(path, chosen)
    declared = columns(table) if isinstance(table, type) else dict.fromkeys(table, Column(""))
    with ExitStack() as stack:
        stream = stdout()
        if path:
            temporary = stack.enter_context(replacing(path))
            # Bytes of a file name that are no text are escaped, as on stdout.
            file = open(temporary, "w", encoding="utf-8", newline="", errors="backslashreplace")
            stream = stack.enter_context(file)
        target = _Leaky(stream) if byproduct else stream
        yield stack.enter_context(_writer_to(target, declared, format))


_stdout: TextIO | None = None  # within `prints_aside`


def stdout() -> TextIO:
    """Where what a command gives goes."""
    return _stdout or sys.stdout


@contextmanager
def prints_aside() -> Iterator[None]:
    """Within the block, what others print, as the code of a network may, goes to stderr: a file or
    a pipe gets from stdout nothing but what a command gives."""
    global _stdout
    if stdout().isatty():  # where the bar of `progress` keeps both apart
        yield
        return
    before, _stdout = _stdout, stdout()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _stdout = before


def discard(stream: TextIO) -> None:
    """Let all that goes to `stream` vanish from here on, what waits in its buffer included."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Leaky:
    """A stream whose reader may leave: what is written after that is lost, without an error."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.isatty, self.encoding = stream, stream.isatty, stream.encoding

    def write(self, text: str, /) -> None:
        self._unless_closed(lambda: self.stream.write(text))

    def flush(self) -> None:
        self._unless_closed(self.stream.flush)

    def _unless_closed(self, action: Callable[[], object]) -> None:
        try:
            action()
        except BrokenPipeError:
            discard(self.stream)


@contextmanager
def _writer_to(stream: Stream, declared: Mapping[str, Column], format: Format) -> Iterator[Writer]:
    if format is Format.table:
        rows: list[Row] = []
        try:
            yield lambda row: rows.append(_checked(row, declared))
        finally:  # what there is, even if the work was stopped
            if rows:
                encoding = getattr(stream, "encoding", None) or "utf-8"
                styled = stream.isatty()
                stream.write(render(rows, declared, styled=styled, encoding=encoding))
                stream.flush()
        return
    # csv writes \r\n unless told otherwise, and cut and awk would see the stray character.
    delimited = csv.writer(
        stream, delimiter="\t" if format is Format.tsv else ",", lineterminator="\n"
    )

    # Names are exact in files and pipes; a terminal would act on controls in them.
    shown, shown_json = (printable, _printable_json) if stream.isatty() else (str, str)

    def write(row: Mapping[str, object]) -> None:
        content = _checked(row, declared)
        if format is Format.jsonl:
            line = json.dumps(content, ensure_ascii=False, allow_nan=False)
            stream.write(shown_json(line) + "\n")
        else:
            delimited.writerow(shown(cell(value)) for value in content.values())
        stream.flush()

    if format is not Format.jsonl:
        delimited.writerow(declared)
        stream.flush()
    yield write


def _printable_json(line: str) -> str:
    """JSON of equal meaning, without what would act on a terminal."""
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in line)


def _checked(row: Mapping[str, object], declared: Mapping[str, Column]) -> Row:
    """The row with its columns in order."""
    if row.keys() != declared.keys():
        missing, unknown = declared.keys() - row.keys(), row.keys() - declared.keys()
        raise ValueError(f"a row lacks {sorted(missing)} and has {sorted(unknown)} beside")
    return {column: row[column] for column in declared}
