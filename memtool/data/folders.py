"""Folders of image files, with one folder for each class."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.data.images import SUFFIXES
from memtool.data.listing import Labels, Listing


def listed(path: str) -> Listing:
    """The image files in a folder: train/CLASS/* and test/CLASS/* (or val/), or CLASS/*, which is
    not split.

    Files are sorted by name, and so are the classes. Hidden files, files with other suffixes and
    deeper folders do not count. Raises MemtoolError if the folder is of another form, or if a class
    has no images; in test/ some classes may have none.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise MemtoolError(f"{root}: no such folder (from data set {'folder:' + path!r})")
    if not (root / "train").is_dir():
        classes = _class_names(root)
        return Listing(tuple(classes), None, _files_of(root, classes))
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not tests:
        raise MemtoolError(
            f"{root}: has train but neither test nor val; divide train itself "
            f"(folder:{root / 'train'} with --split-at 80%)"
        )
    classes = _class_names(root / "train")
    unknown = set(_class_names(tests[0])) - set(classes)
    if unknown:
        raise MemtoolError(f"{tests[0]}: class {min(unknown)!r} is not in {root / 'train'}")
    train = _files_of(root / "train", classes)
    return Listing(tuple(classes), train, _files_of(tests[0], classes, allow_empty=True))


def _class_names(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in _entries(folder) if os.path.isdir(entry))
    if not names:
        raise MemtoolError(f"{folder}: should hold one folder for each class, and holds none")
    return names


def _files_of(
    folder: Path, classes: Iterable[str], allow_empty: bool = False
) -> tuple[NDArray[Any], Labels]:
    """The paths of all image files, class by class, and their labels.

    Raises MemtoolError for a class that has none or, with `allow_empty`, only if no class has any.
    """
    found: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        absent = allow_empty and not (folder / name).is_dir()
        own = [] if absent else _image_files(folder / name)
        if not own and not allow_empty:
            raise _no_images(folder / name)
        found += own
        labels += [label] * len(own)
    if not found:
        raise _no_images(folder)
    return np.array(found, dtype=object), np.array(labels, dtype=np.int64)


def _no_images(folder: Path) -> MemtoolError:
    return MemtoolError(f"{folder}: holds no images ({', '.join(sorted(SUFFIXES))})")


def _image_files(folder: Path) -> list[str]:
    return sorted(
        entry.path
        for entry in _entries(folder)
        if os.path.splitext(entry.name)[1].lower() in SUFFIXES and not os.path.isdir(entry)
    )


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    """What a folder holds, hidden files left out."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise MemtoolError(f"{folder}: cannot be read ({error.strerror})") from error
