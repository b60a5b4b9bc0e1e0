"""Where data sets come from: a source becomes a listing of images or image files."""

import io
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import (
    ExitStack,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.data import arrays
from memtool.data.images import SUFFIXES
from memtool.data.spec import NAMES, TORCHVISION
from memtool.errors import last_line
from memtool.progress import Progress, silent

Labels = NDArray[np.int64]
DIGITS_TEST_SIZE = 500


@dataclass(frozen=True)
class Listing:
    """A data set before its images are chosen: `train` and `test` are pairs of items and labels.

    Items are images, uint8 (n, c, h, w), or paths of image files, (n,).
    """

    classes: tuple[str, ...]
    train: tuple[NDArray[Any], Labels] | None
    test: tuple[NDArray[Any], Labels]


def listed(source: str, folder: Path | None, progress: Progress) -> Listing:
    if source == "digits":
        return _digits()
    if source in TORCHVISION:
        return _torchvision(source, folder or default_folder(), progress)
    if source.startswith("folder:"):
        return _folder(Path(source.removeprefix("folder:")).expanduser(), source)
    if Path(source).suffix in arrays.SUFFIXES:
        return _file(Path(source).expanduser())
    nearest = get_close_matches(source, ["digits", *TORCHVISION, "folder:"], n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    if source and Path(source).is_dir():
        hint = f"; did you mean 'folder:{source}'?"
    raise MemtoolError(f"unknown data set {source!r}{hint} (known: {', '.join(NAMES)})")


def stratified(labels: Labels, size: int) -> NDArray[np.bool_]:
    """Which `size` of the n examples are chosen, (n,): every class in proportion.

    Spread evenly over the order of the examples (that of the digits goes writer by writer, so that
    each writer is in both splits); no random numbers, so the choice is the same everywhere. The
    classes with the largest remainders get what rounding down leaves.
    """
    counts = np.bincount(labels)
    shares = counts * size / len(labels)
    sizes = np.floor(shares).astype(int)
    for label in np.argsort(sizes - shares, kind="stable")[: size - sizes.sum()]:
        sizes[label] += 1
    chosen = np.zeros(len(labels), dtype=bool)
    for label, (count, share) in enumerate(zip(counts, sizes, strict=True)):
        positions = (np.arange(share) + 0.5) * count / share
        chosen[np.flatnonzero(labels == label)[positions.astype(int)]] = True
    return chosen


def _digits() -> Listing:
    """Optical Recognition of Handwritten Digits, test part: 1,797 images of 8x8, values 0..16.

    E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository, DOI 10.24432/C50P49,
    CC BY 4.0.
    """
    from safetensors.numpy import load

    content = load(resources.files("memtool.data").joinpath("digits.safetensors").read_bytes())
    images, labels = content["images"][:, None], content["labels"].astype(np.int64)
    test = stratified(labels, DIGITS_TEST_SIZE)
    return Listing(
        classes=tuple("0123456789"),
        train=(images[~test], labels[~test]),
        test=(images[test], labels[test]),
    )


def default_folder() -> Path:
    """Where downloaded data sets are kept: `memtool` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memtool"


def _torchvision(name: str, folder: Path, progress: Progress) -> Listing:
    """One of torchvision's data sets, downloaded into `folder` if it is not there."""
    from torchvision import datasets

    if name == "svhn" and find_spec("scipy") is None:
        raise MemtoolError(
            "svhn: is in MATLAB files, which scipy reads (python -m pip install 'memtool[svhn]')"
        )
    kind = getattr(datasets, TORCHVISION[name])
    # torchvision tells of downloads on either stream; here they go to stderr or nowhere.
    shown = progress is not silent and sys.stderr.isatty()
    stream = sys.stderr if shown else io.StringIO()
    try:
        with (
            _locked(folder),
            redirect_stdout(stream),
            redirect_stderr(stream),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # old pickles, new numpy
            parts = [
                kind(
                    folder,
                    **({"split": part} if name == "svhn" else {"train": part == "train"}),
                    download=True,
                )
                for part in ("train", "test")
            ]
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError) as error:
        raise MemtoolError(
            f"{name}: neither in {folder} nor to be downloaded ({last_line(error)}); put there "
            f"{', '.join(_files(kind))}, or say where they are (--data-dir or MEMTOOL_DATA)"
        ) from error
    train, test = [
        (
            arrays.nchw(np.asarray(part.data), f"{name}: its images"),
            np.asarray(part.labels if name == "svhn" else part.targets, dtype=np.int64),
        )
        for part in parts
    ]
    classes = [str(label).split(" - ")[0] for label in getattr(parts[0], "classes", range(10))]
    return Listing(tuple(classes), train, test)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from downloading to `folder` meanwhile, where that is possible."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with suppress(ImportError, OSError):  # no such locks on Windows and some network drives
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _files(kind: Any) -> list[str]:
    """The files that one of torchvision's data sets is read from, relative to its folder."""
    if hasattr(kind, "split_list"):
        return [kind.split_list[part][1] for part in ("train", "test")]
    if hasattr(kind, "resources"):
        return [f"{kind.__name__}/raw/{name}" for name, _ in kind.resources]
    return [kind.filename]


def _folder(root: Path, source: str) -> Listing:
    """Paths of image files: train/CLASS/* and test/CLASS/* (or val/), or all CLASS/*."""
    if not root.is_dir():
        raise MemtoolError(f"{root}: no such folder (from data set {source!r})")
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
    return Listing(tuple(classes), train, _files_of(tests[0], classes, some=True))


def _class_names(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in _entries(folder) if os.path.isdir(entry))
    if not names:
        raise MemtoolError(f"{folder}: should hold one folder for each class, and holds none")
    return names


def _files_of(
    folder: Path, classes: Iterable[str], some: bool = False
) -> tuple[NDArray[Any], Labels]:
    """Image files in the folder of each class, sorted by name, and their labels.

    Hidden files, other files and deeper folders do not count. Raises MemtoolError for a class
    without any; with `some`, only if no class has any.
    """
    found: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        own = _image_files(folder / name) if not some or (folder / name).is_dir() else []
        if not own and not some:
            raise MemtoolError(f"{folder / name}: holds no images ({_suffixes()})")
        found += own
        labels += [label] * len(own)
    if not found:
        raise MemtoolError(f"{folder}: holds no images ({_suffixes()})")
    return np.array(found, dtype=object), np.array(labels, dtype=np.int64)


def _suffixes() -> str:
    return ", ".join(sorted(SUFFIXES))


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise MemtoolError(f"{folder}: cannot be read ({error.strerror})") from error


def _image_files(folder: Path) -> list[str]:
    return sorted(
        entry.path
        for entry in _entries(folder)
        if os.path.splitext(entry.name)[1].lower() in SUFFIXES and not os.path.isdir(entry)
    )


def _file(path: Path) -> Listing:
    """Arrays in a file: class k is named 'k'."""
    *train, test = arrays.read(path)
    classes = max(int(labels.max()) for _, labels in [*train, test]) + 1
    return Listing(tuple(map(str, range(classes))), train[0] if train else None, test)
