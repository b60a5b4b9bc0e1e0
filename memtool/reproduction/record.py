"""What a reproduction keeps of itself beside its results: its choices, and what each step took."""

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from memtool import MemtoolError, __version__, specs, tables
from memtool.contents import read_json
from memtool.device import processors
from memtool.files import replacing
from memtool.reproduction.recipes import ENVIRONMENT, Recipe
from memtool.reproduction.steps import Step
from memtool.tables import Row, StepRow

PACKAGES = ("torch", "torchvision", "timm", "numpy", "matplotlib")
DIGESTED = 2**20  # bytes of a file: all of most tables, and the metadata of a network


class Record:
    """The table of the latest run of each step, a file that is written anew whenever one changes.

    Raises MemtoolError if the file cannot be read, is another table, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        rows = tables.read(path, StepRow) if path.exists() else []
        if not all(row.get("output") and row.get("command") for row in rows):
            raise MemtoolError(
                f"{path}: names no command, or no output, for a step; remove it, and steps whose "
                "output exists count as done"
            )
        self.rows = {str(row["output"]): row for row in rows}
        self.commands = commands_of(rows, path.parent)

    def keep(
        self,
        step: Step,
        seconds: float | None = None,
        memory: int | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        """Write what is known of a step that runs or, with the `seconds` it took, has run, and of
        the file that it has made, if that is there."""
        row: StepRow = {
            "step": step.name,
            "command": step.recorded,
            "output": step.key,
            "digest": _digest(self.path.parent / step.key),
            "seconds": seconds,
            "memory": memory,
            "warnings": "; ".join(warnings) or None,
        }
        self.rows[step.key], self.commands[step.key] = dict(row), step.recorded
        with tables.writer(StepRow, self.path, None) as write:
            for one in self.rows.values():
                write(one)


def commands_of(rows: Iterable[Row], folder: Path) -> dict[str, str]:
    """The command that made each file below the folder, with relative paths, by the rows of a
    record; empty where another file is by now, as `make` makes one, whose command nobody knows."""
    known = {}
    for row in rows:
        if row.get("output") and row.get("command"):
            found, recorded = _digest(folder / str(row["output"])), row.get("digest")
            is_another = recorded and found not in (None, recorded)
            known[str(row["output"])] = "" if is_another else str(row["command"])
    return known


def _digest(path: Path) -> str | None:
    """SHA-256 of a file's size and of its first `DIGESTED` bytes; None if it cannot be read."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return hashlib.sha256(b"%d " % size + file.read(DIGESTED)).hexdigest()
    except OSError:
        return None


def spelled_as_before(recipe: Recipe, path: Path) -> Recipe:
    """The recipe with its data set and its model as the choices at `path` spell them, where both
    mean the same: by another path to a file, steps would be others, and all would run again.

    Raises MemtoolError if they mean the same from the directory alone in which these choices were
    made, since their commands would not find it here.
    """
    try:
        choices = read_json(path)
        before, directory = Recipe.from_json(choices), str(choices.get("directory", ""))
    except (MemtoolError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return recipe  # there are none, or none of a recipe
    same: dict[str, str] = {}
    for name, kind in (("data", "data set"), ("model", "model")):
        was, now = getattr(before, name), getattr(recipe, name)
        if specs.same(was, now, kind):
            same[name] = was
        elif specs.same(was, now, kind, directory):
            raise MemtoolError(
                f"{path}: was made in {directory}, with --{name} {was}; go on there, since here "
                "everything would be trained anew; or choose another -o"
            )
    return recipe.but(**same)


def write_choices(path: Path, choices: Mapping[str, Any]) -> None:
    """Write what was chosen, and by what it is carried out, as sorted JSON."""
    packages = {name: _version(name) for name in PACKAGES}
    environment = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
    content = {
        **choices,
        "directory": os.getcwd(),
        "environment": environment,
        "platform": platform.platform(),
        "processors": processors(),
        "versions": {"memtool": __version__, "python": platform.python_version(), **packages},
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
