"""The rows of a sweep that is not done, kept beside its table, for a stopped sweep to go on."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, TextIO

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint
from memtool.errors import differences
from memtool.files import claimed, replacing
from memtool.paths import is_special
from memtool.tables import StitchingRow, checked, columns
from memtool.tensors import files_of

logger = logging.getLogger("memtool")


class Unfinished:
    """`FILE.partial` beside the table FILE: the settings of the sweep, then its rows, each a line
    of JSON. Files are known by their paths from the folder of the table: all may be moved together,
    or be named by another way.

        with Unfinished.beside(table, settings, networks, rows_per_cut, resume) as unfinished:
            yield from unfinished.rows      # those that were done
            for row in ...:                 # the others
                unfinished.keep(row)
                yield row

    The file is gone when the block ends well, and stays if it does not, unless no row was done.
    """

    def __init__(self, rows: Sequence[StitchingRow] = (), file: TextIO | None = None) -> None:
        self.rows, self._file = list(rows), file
        self.is_empty = not self.rows

    def keep(self, row: StitchingRow) -> None:
        """Write a row to the file at once."""
        self.is_empty = False
        if self._file:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    @staticmethod
    @contextmanager
    def beside(
        table: Path | None,
        settings: Mapping[str, Any],
        networks: Sequence[Checkpoint],
        rows_per_cut: int,
        resume: bool,
        folder: Path | None = None,
    ) -> Iterator["Unfinished"]:
        """Begin a sweep or, with `resume`, go on with one that was stopped, unless a file of its
        networks is another by now: nobody could go on with that one. Nothing is kept if the table
        is None, a pipe or a device, beside which there is no place. The stitched models are kept in
        `folder`; paths in the `settings` are as `seen_from` the table.

        Raises MemtoolError if the file is of a sweep with other settings or networks of other
        names, and if another process writes the table.
        """
        if table is None or is_special(table):
            yield Unfinished()
            return
        path = table.with_name(f"{table.name}.partial")
        files = [network.path for network in networks]
        typed = {seen_from(table, one): str(one) for one in [*files, *([folder] if folder else [])]}
        digests = {seen_from(table, one): _digest(one) for one in files}
        names = list(columns(StitchingRow))
        header = {**settings, "networks": digests, "order": list(digests), "columns": names}
        with claimed(table):  # or one that begins meanwhile would take the rows of this one away
            is_there = resume and path.exists()
            rows = _rows_in(path, header, typed, rows_per_cut) if is_there else []
            with replacing(path) as temporary:
                lines = [
                    json.dumps(content) + "\n" for content in ({**header, "typed": typed}, *rows)
                ]
                temporary.write_text("".join(lines), encoding="utf-8")
            with open(path, "a", encoding="utf-8") as file:
                unfinished = Unfinished(rows, file)
                try:
                    yield unfinished
                    unfinished.is_empty = True
                finally:
                    if unfinished.is_empty:
                        path.unlink(missing_ok=True)


def seen_from(table: Path | None, path: Path) -> str:
    """The path of a file from the folder of the table on, or from here if there is no table."""
    return os.path.relpath(path, table.parent if table else None)


def _rows_in(
    path: Path, header: Mapping[str, Any], typed: Mapping[str, str], rows_per_cut: int
) -> list[StitchingRow]:
    """The rows of the cuts that were done, up to one whose stitched model is gone, with files as
    they are `typed` now, which is given by their paths from the table."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]  # whole ones
    try:
        found, *rows = [json.loads(line) for line in lines]
        if replaced := _replaced(found["networks"], header["networks"]):
            logger.info(f"{path}: {replaced} is another network since; starts anew")
            return []
        before = found.pop("typed")
        other = differences(found, header)
        if not other:
            _check(rows)
            names = {before.get(one): now for one, now in typed.items()}
            rows = [_renamed(row, names) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MemtoolError(
            f"{path}: is damaged; remove it, or leave out --resume, to start anew"
        ) from error
    if other:
        raise MemtoolError(
            f"{path}: is of a sweep with other settings: {'; '.join(other[:3])}; give those, "
            "or, to start anew, remove the file or leave out --resume"
        )
    there = takewhile(lambda row: not row["stitched"] or Path(row["stitched"]).exists(), rows)
    return rows[: len(list(there)) // rows_per_cut * rows_per_cut]


def _replaced(digests: Mapping[str, Any], now: Mapping[str, str]) -> str | None:
    """A network whose file is not the one whose digest is on record; None if there is none."""
    return next((name for name in now if digests.get(name, now[name]) != now[name]), None)


def _renamed(row: StitchingRow, names: Mapping[str, str]) -> StitchingRow:
    """The row with new names of its networks, and of the folder of its stitched model."""
    front, back = (names.get(name, name) for name in (row["front"], row["back"]))
    stitched = row["stitched"]
    if stitched:
        folder = str(Path(stitched).parent)
        stitched = str(Path(names.get(folder, folder), Path(stitched).name))
    return {**row, "front": front, "back": back, "stitched": stitched}


def _check(rows: Sequence[Any]) -> None:
    """Raise ValueError unless these are rows of a sweep's table."""
    for row in rows:
        if not isinstance(row, dict) or row.keys() != columns(StitchingRow).keys():
            raise ValueError("not a row")
        for column, cell in row.items():
            checked(StitchingRow, column, cell)


def _digest(path: Path) -> str:
    """SHA-256 of a checkpoint; of those of its files, if it has several."""
    digests = []
    for part in files_of(path):
        with open(part, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
