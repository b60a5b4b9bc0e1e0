"""What several commands take in: checkpoints, and the images that belong to them."""

import filecmp
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memtool import MemtoolError, specs
from memtool.cli.console import logger, progress
from memtool.cli.options import size
from memtool.data import with_defaults, with_options

if TYPE_CHECKING:
    from memtool.checkpoints import Checkpoint
    from memtool.data import Dataset
    from memtool.models import ModelSpec


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

    `others` are checkpoints that get the same images. Warnings name those that were trained on
    images prepared otherwise, on other classes, or on the data set before it changed.

    Raises MemtoolError if there is neither, if the images are not of the shape that the model
    takes, or if the data set in the checkpoint's metadata has changed since; with `training`, also
    if it has no training images or another number of classes than the model.
    """
    from memtool.checkpoints import warn_of_differences

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
    for one in (checkpoint, *others):
        _check_shape(one, dataset)
    if training:
        _check_classes(checkpoint, dataset)
    if spec is None:
        _check_unchanged(checkpoint, dataset)
    warn_of_differences([*others, checkpoint], dataset)
    return dataset


def _prepared(spec: str, checkpoint: "Checkpoint") -> str:
    """`spec` with the options by which `checkpoint` prepares its images, where it has none."""
    full = with_defaults(spec, **checkpoint.preprocessing)
    if specs.parse(full, "data set")[1].get("crop_mode") == "border":  # which has the mean's color
        known = {key: checkpoint.data[key] for key in ("mean", "std") if key in checkpoint.data}
        full = with_defaults(full, **known)
    if full != spec:
        by = "configuration" if "preprocessing" in checkpoint.data else "own data set"
        logger.info(f"{checkpoint.path}: its {by} says how its images are prepared: {full}")
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
    if checkpoint.is_outdated(dataset):
        raise MemtoolError(
            f"{checkpoint.path}: its data set {checkpoint.data['name']!r} has changed since; "
            f"if that is meant, pass --data {checkpoint.data['name']!r}"
        )
