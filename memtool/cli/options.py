"""Options that several commands share, declared once, and the parsing of their values."""

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from memtool import MemtoolError, device, specs, tables
from memtool.cli.console import be_debugging, be_quiet
from memtool.data import NAMES
from memtool.models import OURS
from memtool.tables import Format

LARGEST_SEED = 2**32 - 1
DATASETS = f"{', '.join(NAMES[:-1])} or {NAMES[-1]}"

Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="File for the rows, written whole or not at all; - is stdout (the default)",
    ),
]
TableFormat = Annotated[
    Format | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="csv, tsv, jsonl or table; by default by the suffix of -o, else a table on a terminal "
        "and CSV in a pipe",
    ),
]
StdoutFormat = Annotated[
    Format | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="csv, tsv, jsonl or table, of the rows on stdout; by default a table on a terminal "
        "and CSV in a pipe",
    ),
]
Layers = Annotated[
    list[str],
    typer.Option(
        "--layers",
        metavar="PATTERNS",
        help="Globs on dotted layer names, in which * crosses dots; may be repeated or separated "
        "by commas; 'all' is every layer (memtool info --layers FILE lists them)",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATASET",
        help=f"{DATASETS}; else the one in the last checkpoint's metadata; options as in "
        "folder:PATH?image_size=224&crop_pct=0.875&interpolation=bicubic, by default those in the "
        "config.json beside the last checkpoint",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        envvar="MEMTOOL_DATA",
        help="Where cifar10, svhn, ... are, or are downloaded to; else memtool in the user's cache",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="N",
        min=1,
        help="Resize the images so that their shorter side has N pixels, and cut out the middle "
        "square",
    ),
]
SplitAt = Annotated[
    str | None,
    typer.Option(
        "--split-at",
        metavar="PART",
        help="How much of a data set that is not split is for training, as 80%, 0.8 or 1000, every "
        "class in proportion; the rest is for testing",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        metavar="N",
        min=1,
        help="Take at most N of the test images, every class in proportion, the same ones each "
        "time",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="SPEC",
        help=f"The model of the checkpoints: {', '.join(OURS)}, "
        "torchvision:NAME, timm:NAME, FILE.py:FACTORY or FILE.json, with options as in "
        "resnet18?width=16; by default the one on record, or the one recognized by config.json or "
        "the tensors",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Allow the FILE.py named in a checkpoint's metadata to run, if its SHA-256 is the one "
        "recorded",
    ),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", metavar="N", min=1, help="Images in a batch")
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", metavar="N", min=0, max=LARGEST_SEED, help="Seed of everything that is random"
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        envvar="MEMTOOL_DEVICE",
        help="Device to compute on: auto, cpu, cuda, cuda:1, ... or mps",
    ),
]
MEMORY = f"{device.MEMORY >> 30}GiB"  # by default
Memory = Annotated[
    str,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Memory that images may take and, beside them, forward passes and results, such as "
        "512MiB or 4GiB (4G is the same, 4GB is 4 x 10^9 bytes); image files that do not fit are "
        "decoded once, into a file (see MEMTOOL_CACHE), larger arrays are refused, and results "
        "that do not fit are computed again, with more forward passes",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("-q", "--quiet", callback=be_quiet, help="No progress and no notes on stderr"),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        callback=be_debugging,
        help="On an error, also print the traceback that led to it, such as that of a model's code",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check everything, print the settings as JSON, and write nothing"
    ),
]


def checked_output(path: Path | None, chosen: Format | None) -> Path | None:
    """Where rows go, None for stdout, as `-` is; checked before the work. Raises MemtoolError if
    the file cannot be written, or its suffix says no format.

    /dev/stdout is stdout too, which may be a file to which the shell appends: to open that by its
    name, or replace it, would take away what it holds.
    """
    from memtool.files import check_writable
    from memtool.paths import descriptor

    if path is None or str(path) == "-" or descriptor(path) == 1:
        return None
    tables.format_of(path, chosen)
    check_writable(path)
    return path


def comma_separated(values: list[str], option: str) -> list[str]:
    """['a,b', 'c'] as ['a', 'b', 'c']; a usage error where something was typed that names nothing,
    as a variable of the shell does that is not set."""
    parts = [part.strip() for value in values for part in value.split(",") if part.strip()]
    if values and not parts:
        raise typer.BadParameter(
            f"{','.join(values)!r} names nothing; leave the option out for its default",
            param_hint=option,
        )
    return parts


def ratios(values: list[str], option: str) -> list[float]:
    """['0 25%', '0.5,1'] as [0, 0.25, 0.5, 1]; a usage error for anything outside [0, 1], and where
    something was typed that names none."""
    parts = [part for text in values for part in text.replace(",", " ").split()]
    if values and not parts:
        raise typer.BadParameter("no ratio given", param_hint=option)
    try:
        return [specs.ratio(part) for part in parts]
    except MemtoolError as error:
        is_decimal = any(re.search(r"\d,\d", text) for text in values)
        hint = " (a comma separates ratios, decimals have a point)" if is_decimal else ""
        raise typer.BadParameter(f"{error}{hint}", param_hint=option) from None


def size(text: str) -> int:
    """'4GiB', '4G' or '4GB' in bytes, the last of which is 4 * 10^9; a usage error for anything but
    a number with a unit, B to TiB, in capital or small letters."""
    found = re.fullmatch(r"(?ai)(\d*\.?\d+) *([KMGT]I?B?|B)", text.strip())
    if not found:
        raise typer.BadParameter(
            f"{text!r} is not a size, such as 512MiB or 4GiB", param_hint="--memory"
        )
    number, unit = found[1], found[2].upper()
    base = 1000 if unit.endswith("B") and "I" not in unit else 1024
    return int(min(float(number) * base ** "BKMGT".index(unit[0]), sys.maxsize))


def epochs(text: str, option: str) -> list[int]:
    """'1,2,4' or '1 2 4' as [1, 2, 4]; a usage error for anything but whole numbers from 0 on."""
    parts = text.replace(",", " ").split()
    if not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise typer.BadParameter(
            f"{text!r} is not a list of epochs, such as 1,2,4,8", param_hint=option
        )
    return [int(part) for part in parts]


def check_file(path: Path) -> None:
    """Raise a usage error unless `path` ends in .safetensors: it is not stdout or a figure."""
    if path.suffix != ".safetensors":
        raise typer.BadParameter(f"{path}: name a file that ends in .safetensors", param_hint="-o")


def write(
    rows: Iterable[Mapping[str, object]],
    table: type,
    path: Path | None,
    chosen: Format | None,
    *,
    byproduct: bool = False,
) -> None:
    """Write rows as they come, to a file or to stdout, as `tables.writer` does."""
    with tables.writer(table, path, chosen, byproduct=byproduct) as write_row:
        for row in rows:
            write_row(row)


def take_part(rows: Iterable[object]) -> None:
    """What processes of a torchrun but the first do: the same work, whose rows that one writes."""
    for _ in rows:
        pass
