"""Data sets: a spec becomes uint8 images and labels. No noise, no models.

A spec is a source and options, as in `folder:photos/?image_size=64&split_at=80%`. Sources:

- `digits`, embedded;
- `cifar10`, `cifar100`, `svhn`, `mnist`, `fashion-mnist`, through torchvision;
- `folder:PATH`: PATH/train/CLASS/* and PATH/test/CLASS/* (or val/ for test/), or PATH/CLASS/*;
- `FILE.npz` or `FILE.safetensors` with the arrays `images` and `labels`, or `train_images`,
  `train_labels`, `test_images` and `test_labels`.

A folder or a file that does not tell training from test images is all test images, unless
`split_at` divides it. Options: see `Options`.
"""

import hashlib
import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError, arrays
from memtool.images import SUFFIXES, Images, decoded, last_line, resized

if TYPE_CHECKING:
    import torch

Labels = NDArray[np.int64]
# Opens a bar with a description and a number of steps; gives the function that advances it.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

TORCHVISION = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
}
NAMES = ("digits", *TORCHVISION, "folder:PATH", "FILE.npz", "FILE.safetensors")
DIGITS_TEST_SIZE = 500
CHUNK = 256  # images counted at a time


@dataclass(frozen=True)
class Split:
    """Images, uint8 (n, channels, height, width), and their true labels, int64 (n,)."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Options:
    """What may follow the source of a data set, as `?key=value&key=value`."""

    image_size: int | None = None
    """Resize the shorter side to this many pixels, antialiased, and cut out the middle square."""
    split_at: float | None = None
    """How much is for training, the rest being for testing: a part ('80%', 0.8) or a number."""
    samples: int | None = None
    """Take at most this many test images, every class in proportion, and no training images."""
    mean: list[float] | None = None
    """Of each channel, in units of 255, instead of what the training images have."""
    std: list[float] | None = None


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the names of the classes; `name` is the spec as typed.

    The training split is empty where there is none.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    options: Options = field(default_factory=Options)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.test.images.shape[1:]
        return channels, height, width

    @cached_property
    def mean(self) -> list[float]:
        """Mean of each channel over the training images, in units of 255; over the test images if
        there are none to train on; or what the spec says."""
        return self.options.mean or [mean for mean, _ in self._statistics]

    @cached_property
    def std(self) -> list[float]:
        """Standard deviation of each channel, of the images and in the units of `mean`; 1 where a
        channel is constant."""
        return self.options.std or [std or 1.0 for _, std in self._statistics]

    @cached_property
    def _statistics(self) -> list[tuple[float, float]]:
        """Mean and standard deviation of each channel, from exact counts of the pixel values."""
        images = (self.train if len(self.train) else self.test).images
        counts = np.zeros((images.shape[1], 256), dtype=np.int64)
        for start in range(0, len(images), CHUNK):  # bincount makes int64 copies
            for channel, pixels in enumerate(images[start : start + CHUNK].swapaxes(0, 1)):
                counts[channel] += np.bincount(pixels.ravel(), minlength=256)
        values = np.arange(256) / 255
        means = counts @ values / counts.sum(axis=1)
        spread = (counts * (values - means[:, None]) ** 2).sum(axis=1) / counts.sum(axis=1)
        return list(zip(means.tolist(), np.sqrt(spread).tolist(), strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of both splits' pixels and labels: equal content, equal fingerprint."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            digest.update(repr(split.images.shape).encode())
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels).data)
        return digest.hexdigest()

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint or label file records of its data set."""
        return {
            "name": self.name,
            "train": len(self.train),
            "test": len(self.test),
            "image_shape": list(self.image_shape),
            "classes": list(self.classes),
            "mean": self.mean,
            "std": self.std,
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True)
class _Listing:
    """A data set before its images are chosen: `train` and `test` are pairs of items and labels.

    Items are images, uint8 (n, c, h, w), or paths of image files, (n,).
    """

    classes: tuple[str, ...]
    train: tuple[NDArray[Any], Labels] | None
    test: tuple[NDArray[Any], Labels]


def load(
    spec: str,
    folder: Path | None = None,
    progress: Progress | None = None,
    training: bool = False,
) -> Dataset:
    """The data set that `spec` names. Raises MemtoolError.

    `folder` is where torchvision's data sets are, or are downloaded to; without `progress`,
    nothing is said meanwhile. With `training`, a data set without training images is an error.
    """
    source, options = parse(spec)
    if training and options.samples:
        raise MemtoolError(f"{spec}: samples is for comparing, not for training; leave it out")
    listing = _divided(_listed(source, folder, progress), spec, options)
    if training and listing.train is None:
        raise MemtoolError(
            f"{spec}: has no training images; say how much is for training (--split-at 80%)"
        )
    test, test_labels = listing.test
    train, train_labels = listing.train or (test[:0], test_labels[:0])
    images = _images([train, test], spec, options.image_size, progress)
    for name, values in (("mean", options.mean), ("std", options.std)):
        if values and len(values) != images.shape[1]:
            raise MemtoolError(
                f"{spec}: {name} has {len(values)} values, the images {images.shape[1]} channels"
            )
    border = len(train_labels)
    return Dataset(
        name=spec,
        classes=listing.classes,
        train=Split(images[:border], train_labels),
        test=Split(images[border:], test_labels),
        options=options,
    )


# Specs


def parse(spec: str) -> tuple[str, Options]:
    """`SOURCE?key=value&...` as source and options. Raises MemtoolError."""
    source, pairs = _pairs(spec)
    return source, Options(**{key: _value(spec, key, text) for key, text in pairs.items()})


def with_options(spec: str, **options: object) -> str:
    """`spec` with more options, or with others; those that are None stay as they are."""
    source, pairs = _pairs(spec)
    pairs |= {key: str(value) for key, value in options.items() if value is not None}
    query = "&".join(f"{key}={value}" for key, value in pairs.items())
    return f"{source}?{query}" if query else spec


def _pairs(spec: str) -> tuple[str, dict[str, str]]:
    """The source and the options as typed; the last ? in a path of several begins them."""
    source, mark, query = spec.rpartition("?")
    if not mark:
        return spec, {}
    known = list(Options.__dataclass_fields__)
    pairs = {}
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        if key not in known:
            raise MemtoolError(
                f"data set {spec!r} has no option {key!r} (there are: {', '.join(known)})"
            )
        pairs[key] = value
    return source, pairs


def _value(spec: str, key: str, text: str) -> Any:
    """The value of an option; raises MemtoolError for one out of range."""
    try:
        if key in ("mean", "std"):
            numbers = [float(part) for part in text.split(",")]
            if all(math.isfinite(number) and (key == "mean" or number > 0) for number in numbers):
                return numbers
        elif key == "split_at" and not text.isdecimal():
            part = float(text[:-1]) / 100 if text.endswith("%") else float(text)
            if 0 < part < 1:
                return part
        elif int(text) > 0:
            return int(text)
    except ValueError:
        pass
    wanted = {
        "mean": "numbers, one a channel, separated by commas",
        "std": "positive numbers, one a channel, separated by commas",
        "split_at": "the part or the number of images to train on, such as 80%, 0.8 or 1000",
    }
    raise MemtoolError(
        f"data set {spec!r}: {key} is {wanted.get(key, 'a whole number from 1 on')}, not {text!r}"
    )


def _listed(source: str, folder: Path | None, progress: Progress | None) -> _Listing:
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


def _divided(listing: _Listing, spec: str, options: Options) -> _Listing:
    """The examples that `split_at` and `samples` leave, in their order."""
    if options.split_at is not None:
        if listing.train is not None:
            raise MemtoolError(f"{spec}: has a training split; leave out split_at")
        items, labels = listing.test
        size = options.split_at
        count = round(size * len(labels)) if isinstance(size, float) else size
        if not 0 < count < len(labels):
            raise MemtoolError(
                f"{spec}: of its {len(labels)} images, split_at leaves {max(0, count)} to train on "
                f"and {max(0, len(labels) - count)} to test on"
            )
        test = _stratified(labels, len(labels) - count)
        listing = replace(
            listing, train=(items[~test], labels[~test]), test=(items[test], labels[test])
        )
    if options.samples is not None:
        items, labels = listing.test
        chosen = _stratified(labels, min(options.samples, len(labels)))
        listing = replace(listing, train=None, test=(items[chosen], labels[chosen]))
    return listing


def _stratified(labels: Labels, size: int) -> NDArray[np.bool_]:
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


# Sources


def _digits() -> _Listing:
    """Optical Recognition of Handwritten Digits, test part: 1,797 images of 8x8, values 0..16.

    E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository, DOI 10.24432/C50P49,
    CC BY 4.0.
    """
    from safetensors.numpy import load

    content = load(resources.files("memtool").joinpath("digits.safetensors").read_bytes())
    images, labels = content["images"][:, None], content["labels"].astype(np.int64)
    test = _stratified(labels, DIGITS_TEST_SIZE)
    return _Listing(
        classes=tuple("0123456789"),
        train=(images[~test], labels[~test]),
        test=(images[test], labels[test]),
    )


def default_folder() -> Path:
    """Where downloaded data sets are kept: `memtool` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memtool"


def _torchvision(name: str, folder: Path, progress: Progress | None) -> _Listing:
    """One of torchvision's data sets, downloaded into `folder` if it is not there."""
    from torchvision import datasets

    if name == "svhn" and find_spec("scipy") is None:
        raise MemtoolError(
            "svhn: is in MATLAB files, which scipy reads (python -m pip install 'memtool[svhn]')"
        )
    kind = getattr(datasets, TORCHVISION[name])
    # torchvision tells of downloads on either stream; here they go to stderr or nowhere.
    stream = sys.stderr if progress else io.StringIO()
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
    return _Listing(tuple(classes), train, test)


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


def _folder(root: Path, source: str) -> _Listing:
    """Paths of image files: train/CLASS/* and test/CLASS/* (or val/), or all CLASS/*."""
    if not root.is_dir():
        raise MemtoolError(f"{root}: no such folder (from data set {source!r})")
    if not (root / "train").is_dir():
        classes = _class_names(root)
        return _Listing(tuple(classes), None, _files_of(root, classes))
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
    return _Listing(tuple(classes), train, _files_of(tests[0], classes, some=True))


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


def _file(path: Path) -> _Listing:
    """Arrays in a file: class k is named 'k'."""
    *train, test = arrays.read(path)
    classes = max(int(labels.max()) for _, labels in [*train, test]) + 1
    return _Listing(tuple(map(str, range(classes))), train[0] if train else None, test)


def _images(
    parts: list[NDArray[Any]], spec: str, size: int | None, progress: Progress | None
) -> Images:
    """All images of the parts one after another, (n, c, h, w), read and resized as needed."""
    items = np.concatenate(parts) if all(map(len, parts)) else max(parts, key=len)
    opened = progress or _no_progress
    if items.dtype == object:
        with opened(f"reading {spec}", len(items)) as advance:
            return decoded(list(items), size, advance)
    if size is None or items.shape[2:] == (size, size):
        return np.ascontiguousarray(items)
    with opened(f"resizing {spec}", len(items)) as advance:
        return resized(items, size, advance)


def _no_progress(description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda steps: None)


def normalize(images: "torch.Tensor", mean: list[float], std: list[float]) -> "torch.Tensor":
    """uint8 (n, c, h, w) to float32: (images / 255 - mean) / std, channel by channel."""
    import torch

    shape = (1, -1, 1, 1)
    # Made on the host and sent without waiting: this runs in every training step.
    offset = torch.tensor(mean).mul(255).view(shape).to(images.device, non_blocking=True)
    scale = torch.tensor(std).mul(255).view(shape).to(images.device, non_blocking=True)
    return images.float().sub_(offset).div_(scale)
