"""Options that several commands share, declared once, and the parsing of their values."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memtool import MemtoolError
from memtool.table import Format

if TYPE_CHECKING:
    from memtool.checkpoint import Checkpoint
    from memtool.data import Dataset

Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="Where the rows go, whole or not at all; - is stdout (the default)",
        show_default=False,
    ),
]
TableFormat = Annotated[
    Format | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="csv, tsv, jsonl or table; else by the suffix of -o, else a table on a terminal "
        "and CSV in a pipe",
        show_default=False,
    ),
]
Layers = Annotated[
    list[str],
    typer.Option(
        "--layers",
        metavar="PATTERNS",
        help="Globs on dotted layer names, in which * crosses dots; repeat it or separate them by "
        "commas; 'all' is every layer (memtool info --layers FILE lists them)",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATASET",
        help="digits, or folder:PATH; else the one in the last checkpoint's metadata",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", metavar="N", min=1, help="Examples in a batch")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of all that is random")]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        envvar="MEMTOOL_DEVICE",
        help="auto, cpu, cuda, cuda:1, ... or mps",
    ),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no notes on stderr")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check everything, print the settings as JSON, and write nothing"
    ),
]


def output_path(path: Path | None) -> Path | None:
    """`-` means stdout, as None does."""
    return None if path == Path("-") else path


def comma_separated(values: list[str]) -> list[str]:
    """['a,b', 'c'] as ['a', 'b', 'c']."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def fraction(text: str) -> float:
    """'25%' or '0.25' as 0.25; a usage error for anything outside [0, 1]."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a ratio, such as 25% or 0.25") from None
    if not 0 <= value <= 1:
        hint = f"; did you mean {text}%?" if 1 < value <= 100 else ""
        raise typer.BadParameter(f"ratio {text} is outside [0, 1]{hint}")
    return value


def size(text: str) -> int:
    """'4GiB' in bytes; a usage error for anything but a number with a unit, B to TiB."""
    units = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?B?|B)", text)
    if not found:
        raise typer.BadParameter(f"{text!r} is not a size, such as 500MiB or 4GiB")
    number, unit = found.groups()
    return int(float(number) * units[unit if unit == "B" else f"{unit[0]}iB"])


def epochs(text: str) -> list[int]:
    """'1,2,4' as [1, 2, 4]; a usage error for anything but whole numbers from 0 on."""
    parts = comma_separated([text])
    if not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of epochs, such as 1,2,4,8")
    return [int(part) for part in parts]


def load_dataset(spec: str | None, checkpoint: "Checkpoint") -> "Dataset":
    """The data set typed, else the one that `checkpoint` was trained on.

    Raises MemtoolError if the images are not of the shape that its model takes, or if the data set
    on record is not what it was.
    """
    from memtool import data

    recorded = checkpoint.data
    dataset = data.load(spec or recorded["name"])
    if list(dataset.image_shape) != recorded["image_shape"]:
        raise MemtoolError(
            f"{checkpoint.path}: takes images of (channels, height, width) = "
            f"{tuple(recorded['image_shape'])}, those of {dataset.name} are {dataset.image_shape}"
        )
    if spec is None and dataset.fingerprint != recorded["fingerprint"]:
        raise MemtoolError(
            f"{checkpoint.path}: its data set {recorded['name']!r} has changed since; "
            f"if that is meant, pass --data {recorded['name']}"
        )
    return dataset


def check_file(path: Path) -> None:
    """Raise MemtoolError unless `path` names a file rather than stdout."""
    if path == Path("-"):
        raise MemtoolError("-: this output is binary and several files long; name a file")
