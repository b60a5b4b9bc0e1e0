"""Options that several commands share, declared once, and the parsing of their values."""

import filecmp
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memtool import MemtoolError, device, specs, tables
from memtool.cli.console import be_debugging, be_quiet, logger, progress
from memtool.data import NAMES, with_defaults, with_options
from memtool.models import OURS
from memtool.tables import Format

if TYPE_CHECKING:
    from memtool.checkpoints import Checkpoint
    from memtool.data import Dataset
    from memtool.models import ModelSpec

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
        "512MiB or 4GiB; image files that do not fit are decoded once, into a file (see "
        "MEMTOOL_CACHE), larger arrays are refused, and results that do not fit are computed "
        "again, with more forward passes",
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
    the file cannot be written, or its suffix says no format."""
    from memtool.files import check_writable

    if path is None or path == Path("-"):
        return None
    tables.format_of(path, chosen)
    check_writable(path)
    return path


def comma_separated(values: list[str]) -> list[str]:
    """['a,b', 'c'] as ['a', 'b', 'c']."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def ratios(values: list[str]) -> list[float]:
    """['0 25%', '0.5,1'] as [0, 0.25, 0.5, 1]; a usage error for anything outside [0, 1]."""
    try:
        return [specs.ratio(part) for text in values for part in text.replace(",", " ").split()]
    except MemtoolError as error:
        raise typer.BadParameter(str(error)) from None


def size(text: str) -> int:
    """'4GiB' in bytes; a usage error for anything but a number with a unit, B to TiB."""
    units = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?B?|B)", text)
    if not found:
        raise typer.BadParameter(f"{text!r} is not a size, such as 512MiB or 4GiB")
    number, unit = found.groups()
    return int(float(number) * units[unit if unit == "B" else f"{unit[0]}iB"])


def epochs(text: str) -> list[int]:
    """'1,2,4' or '1 2 4' as [1, 2, 4]; a usage error for anything but whole numbers from 0 on."""
    parts = text.replace(",", " ").split()
    if not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of epochs, such as 1,2,4,8")
    return [int(part) for part in parts]


def model_spec(text: str | None) -> "ModelSpec | None":
    """The spec typed as `--model`, if any. Raises MemtoolError."""
    from memtool.models import parse

    return parse(text) if text else None


def named_models(paths: Sequence[Path]) -> list[Path]:
    """The paths, but in place of a table of `stitch --save` those of the stitched models in it.

    Raises MemtoolError for a table that names none, or one that may be either of two.
    """
    from memtool import tables

    found: list[Path] = []
    for path in paths:
        if tables.format_by_suffix(path) is None:
            found.append(path)
            continue
        rows = tables.read(path, tables.StitchingRow)
        names = dict.fromkeys(row.get("stitched") for row in rows)
        if not (models := [_beside(path, Path(name)) for name in names if name]):
            raise MemtoolError(f"{path}: names no stitched models; make it with stitch --save DIR")
        found += models
    return found


def _beside(table: Path, named: Path) -> Path:
    """The file that a table names, by a path as it was typed once: where folders lie around the
    table as they did, they may have been moved, or copied, with it, and that file is meant.

    Raises MemtoolError if there is one where the table says, too, and they differ.
    """
    parts = named.parts[1:] if named.is_absolute() else named.parts
    for folder in (table.parent, table.parent.parent):
        for start in range(len(parts) - 1):  # the name of a file alone would say too little
            if (found := folder.joinpath(*parts[start:])).is_file():
                _check_alike(table, found, named)
                return found
    return named


def _check_alike(table: Path, found: Path, named: Path) -> None:
    """Raise MemtoolError if what a table names is there, and differs from what was found."""
    if not named.is_file() or found.samefile(named) or filecmp.cmp(found, named, shallow=False):
        return
    raise MemtoolError(
        f"{table}: names {named}, and {found}, which lies beside the table, differs; either may be "
        "meant: name the stitched models in place of the table, or move the others away"
    )


def open_checkpoints(
    paths: Sequence[Path], model: str | None = None, trust: bool = False
) -> "list[Checkpoint]":
    """The checkpoints at `paths`, of the `model` typed, if any. Raises MemtoolError as
    `Checkpoint.open` does."""
    from memtool.checkpoints import Checkpoint

    spec = model_spec(model)
    return [Checkpoint.open(path, spec, trust) for path in paths]


def load_data(spec: str, folder: Path | None, memory: str, *, training: bool = False) -> "Dataset":
    """`data.load` with progress on stderr; `memory` as it was typed."""
    from memtool import data

    return data.load(spec, folder, progress=progress, training=training, memory=size(memory))


def load_dataset(
    spec: str | None,
    checkpoint: "Checkpoint",
    folder: Path | None,
    memory: str,
    *,
    image_size: int | None = None,
    split_at: str | None = None,
    samples: int | None = None,
    training: bool = False,
    others: "Sequence[Checkpoint]" = (),
) -> "Dataset":
    """The data set that was typed, else the one that `checkpoint` was trained on, with the flags as
    options of its spec, and those by which `checkpoint` prepares its images.

    `others` are checkpoints that get the same images: a warning names one that prepares them
    differently.

    Raises MemtoolError if there is neither, if the images are not of the shape that the model
    takes, or if the data set in the checkpoint's metadata has changed since; with `training`, also
    if it has no training images or another number of classes than the model.
    """
    recorded = checkpoint.data.get("name")
    name = spec or recorded
    if not isinstance(name, str):
        raise MemtoolError(
            f"{checkpoint.path}: does not say what it was trained on; name a data set (--data)"
        )
    full = with_options(name, image_size=image_size, split_at=split_at, samples=samples)
    if name == recorded and samples is not None:  # of which all images have told the bits
        full = with_defaults(full, bits=checkpoint.data.get("bits"))
    if spec is not None:
        full = _prepared(full, checkpoint)
    dataset = load_data(full, folder, memory, training=training)
    for other in others:
        other.warn_of_preparation(dataset)
    for one in (checkpoint, *others):
        _check_shape(one, dataset)
    if training:
        _check_classes(checkpoint, dataset)
    if full == recorded and spec is None:
        _check_unchanged(checkpoint, dataset)
    return dataset


def _prepared(spec: str, checkpoint: "Checkpoint") -> str:
    """`spec` with the options by which `checkpoint` prepares its images, where it has none."""
    full = with_defaults(spec, **checkpoint.preprocessing)
    if specs.parse(full, "data set")[1].get("crop_mode") == "border":  # which has the mean's color
        known = {key: checkpoint.data[key] for key in ("mean", "std") if key in checkpoint.data}
        full = with_defaults(full, **known)
    if full != spec:
        logger.info(
            f"{checkpoint.path}: its configuration says how its images are prepared: {full}"
        )
    return full


def _check_shape(checkpoint: "Checkpoint", dataset: "Dataset") -> None:
    """Raise MemtoolError if `checkpoint` is known to take images of another shape."""
    from memtool.data import told_shape

    shape = tuple(checkpoint.data.get("image_shape") or dataset.image_shape)
    if dataset.image_shape != shape:
        hint, others = "", dataset.image_shape
        if len(shape) == 3 and others[1:] == shape[1:] and shape[0] in (1, 3):
            hint = f" (--data {with_options(dataset.name, channels=shape[0])!r} makes them so)"
        elif len(shape) == 3 and others[:1] == shape[:1] and shape[1] == shape[2]:
            hint = f" (--image-size {shape[1]} makes them so)"
        raise MemtoolError(
            f"{checkpoint.path}: takes {told_shape(shape)}, {dataset.name} has "
            f"{told_shape(dataset.image_shape)}{hint}"
        )


def _check_classes(checkpoint: "Checkpoint", dataset: "Dataset") -> None:
    """Raise MemtoolError if `checkpoint` is known to have another number of classes."""
    classes, known = len(dataset.classes), checkpoint.classes
    if known not in (None, classes):
        raise MemtoolError(
            f"{checkpoint.path}: tells {known} classes apart, {dataset.name} has {classes}; "
            "name the data set that it was trained on (--data)"
        )


def _check_unchanged(checkpoint: "Checkpoint", dataset: "Dataset") -> None:
    """Raise MemtoolError if `checkpoint` was trained on other content of the same name."""
    if dataset.fingerprint != (checkpoint.data.get("fingerprint") or dataset.fingerprint):
        raise MemtoolError(
            f"{checkpoint.path}: its data set {dataset.name!r} has changed since; "
            f"if that is meant, pass --data {dataset.name!r}"
        )


def check_file(path: Path) -> None:
    """Raise a usage error unless `path` ends in .safetensors: it is not stdout or a figure."""
    if path.suffix != ".safetensors":
        raise typer.BadParameter(f"{path}: name a file that ends in .safetensors", param_hint="-o")


def write(
    rows: "Iterable[Mapping[str, object]]",
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


def take_part(rows: "Iterable[object]") -> None:
    """What processes of a torchrun but the first do: the same work, whose rows that one writes."""
    for _ in rows:
        pass
