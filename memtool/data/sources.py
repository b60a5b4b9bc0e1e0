"""Where data sets come from: the source in a spec becomes a listing of examples.

A data set of a new kind gets a function here, or a module of its own such as `folders`, that
returns a `Listing`; a line in `listed`; and its name in `spec.NAMES`. One that torchvision has in
arrays, as `data` and `targets` or `labels`, needs a line in `spec.TORCHVISION` only.
"""

import hashlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from difflib import get_close_matches
from importlib import resources
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from memtool import MemtoolError
from memtool.data import arrays, folders
from memtool.data.listing import Examples, Listing, told_shape
from memtool.data.spec import NAMES, TORCHVISION
from memtool.data.splitting import stratified
from memtool.errors import last_line
from memtool.paths import expanded

DIGITS_TEST_SIZE = 500

logger = logging.getLogger("memtool")


def listed(source: str, folder: Path | None = None, *, memory: int) -> Listing:
    """The examples of the data set that `source` names.

    `folder` is where torchvision's data sets are, or are downloaded to; by default, it is
    `default_folder()`. Raises MemtoolError for a source that is unknown or cannot be read, and for
    arrays of more than `memory` bytes.
    """
    if source == "digits":
        return _digits()
    if source in TORCHVISION:
        return _torchvision(source, expanded(folder) if folder else default_folder())
    if source.startswith("folder:"):
        return folders.listed(source.removeprefix("folder:"))
    if Path(source).suffix.lower() in arrays.SUFFIXES:
        return arrays.listed(expanded(source), memory)
    raise MemtoolError(f"unknown data set {source!r}{_hint(source)} (known: {', '.join(NAMES)})")


def _hint(source: str) -> str:
    """What else an unknown source may be meant to be."""
    if source and expanded(source).is_dir():
        return f"; did you mean 'folder:{source}'?"
    nearest = get_close_matches(source.lower(), [name.removesuffix("PATH") for name in NAMES], n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def _digits() -> Listing:
    """Optical Recognition of Handwritten Digits, test part: 1,797 images of 8x8, values 0..16.

    E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository, DOI 10.24432/C50P49,
    CC BY 4.0.
    """
    from safetensors.numpy import load

    content = load(resources.files("memtool.data").joinpath("digits.safetensors").read_bytes())
    images, labels = content["images"][:, None], content["labels"].astype(np.int64)
    examples, test = Examples(images, labels), stratified(labels, DIGITS_TEST_SIZE)
    return Listing(tuple("0123456789"), train=examples[~test], test=examples[test])


def default_folder() -> Path:
    """Where downloaded data sets are kept: MEMTOOL_DATA, else `user_cache()`."""
    folder = os.environ.get("MEMTOOL_DATA")
    return expanded(folder) if folder else user_cache()


def user_cache() -> Path:
    """The folder `memtool` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memtool"


def _torchvision(name: str, folder: Path) -> Listing:
    """One of torchvision's data sets, downloaded to `folder` if it is not there."""
    from torchvision import datasets

    if name == "svhn" and find_spec("scipy") is None:
        raise MemtoolError(
            "svhn: is in MATLAB files, which scipy reads (python -m pip install 'memtool[svhn]')"
        )
    parts = _downloaded(name, getattr(datasets, TORCHVISION[name]), folder)
    train, test = [
        Examples(
            arrays.nchw(np.asarray(part.data), f"{name}: its images"),
            np.asarray(part.targets if hasattr(part, "targets") else part.labels, dtype=np.int64),
        )
        for part in parts
    ]
    classes = [str(label).split(" - ")[0] for label in getattr(parts[0], "classes", range(10))]
    damaged = f"{name}: its files in {folder} are damaged or of something else:"
    for labels in (train.labels, test.labels):
        if wrong := labels[(labels < 0) | (labels >= len(classes))].tolist():
            raise MemtoolError(f"{damaged} {wrong[0]} is no label from 0 to {len(classes) - 1}")
    if train.items.shape[1:] != test.items.shape[1:]:
        sizes = (told_shape(images.shape[1:]) for images in (train.items, test.items))
        raise MemtoolError(f"{damaged} {' to train and '.join(sizes)} to test")
    return Listing(tuple(classes), train, test)


def _downloaded(name: str, kind: Any, folder: Path) -> list[Any]:
    """The training and the test split, as objects of `kind`, one of torchvision's classes."""
    has_train = "train" in signature(kind).parameters
    try:
        with _locked(folder), _output_of_torchvision():
            return [
                kind(
                    folder,
                    **({"train": part == "train"} if has_train else {"split": part}),
                    download=True,
                )
                for part in ("train", "test")
            ]
    except Exception as error:  # whatever torchvision makes of the files that it finds there
        files = ", ".join(_files(kind)) or "its files"
        raise MemtoolError(
            f"{name}: neither in {folder} nor to be downloaded ({last_line(error)}); put there "
            f"{files}, or say where they are (--data-dir or MEMTOOL_DATA)"
            f"{_other_content(kind, folder)}"
        ) from error


def _other_content(kind: Any, folder: Path) -> str:
    """Which files of one of torchvision's data sets are there with other content than they should
    have, for the end of an error message."""
    wrong = []
    for name, expected in _checksums(kind).items():
        path = folder / name
        if path.is_file() and (found := _md5(path)) != expected:
            wrong.append(f"{path} has the MD5 sum {found}, not {expected}")
    return f"; {'; '.join(wrong)} (cut short, or another version)" if wrong else ""


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _checksums(kind: Any) -> dict[str, str]:
    """The MD5 sums of a data set's files, by their paths in its folder, as far as torchvision lists
    them."""
    if hasattr(kind, "split_list"):
        return {kind.split_list[part][1]: kind.split_list[part][2] for part in ("train", "test")}
    if hasattr(kind, "resources"):
        return {f"{kind.__name__}/raw/{name}": md5 for name, md5 in kind.resources}
    if not hasattr(kind, "train_list"):
        return {}
    unpacked = dict(kind.train_list + kind.test_list)
    if hasattr(kind, "meta"):
        unpacked[kind.meta["filename"]] = kind.meta["md5"]
    return {
        kind.filename: kind.tgz_md5,
        **{f"{kind.base_folder}/{name}": md5 for name, md5 in unpacked.items()},
    }


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


@contextmanager
def _output_of_torchvision() -> Iterator[None]:
    """Send what torchvision prints of a download to stderr if that is a terminal where notes are
    shown, else nowhere."""
    shown = logger.isEnabledFor(logging.INFO) and sys.stderr.isatty()
    stream = sys.stderr if shown else io.StringIO()
    with redirect_stdout(stream), redirect_stderr(stream), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old pickles read by a new NumPy
        yield


def _files(kind: Any) -> list[str]:
    """The files that one of torchvision's data sets is read from, relative to its folder."""
    return [kind.filename] if hasattr(kind, "filename") else list(_checksums(kind))
