"""Data sets: a spec becomes images (or vectors) and labels. No noise, no models."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.data.batches import Split
from memtool.data.cache import AllImages, cached
from memtool.data.images import decoded, resized, shape_of, with_channels
from memtool.data.listing import Examples, Listing, told_shape
from memtool.data.sources import listed
from memtool.data.spec import RESIZING, Options, parse
from memtool.data.splitting import divided, sampled, with_fewer
from memtool.data.statistics import channel_statistics, feature_statistics, fingerprint
from memtool.device import MEMORY
from memtool.progress import Progress, silent

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("memtool")


@dataclass(frozen=True)
class Dataset:
    """A training and a test split of images, decoded; `load` makes it.

    `name` is the spec as it was typed, and `classes` are the names of the classes. The training
    split is empty if there is none. `measured` is what is known of the content already: its mean,
    std and fingerprint, so that images in a file need not be read for them, and the `bits` per
    value of image files that have more than 8. `count` is the number of examples that there are,
    those included that `samples` leaves out, and `files` are the paths of the training images, in
    their order, where these are files. `chosen` is a mask,
    (N,), of the training examples among all those that `samples_train` and `split_at` chose from.

    >>> digits = load("digits")
    >>> digits.classes[:3], digits.image_shape
    (('0', '1', '2'), (1, 8, 8))
    >>> digits.test.images.shape, digits.test.labels.shape
    ((500, 1, 8, 8), (500,))
    >>> [round(mean, 4) for mean in digits.mean]
    [0.0191]
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    options: Options = field(default_factory=Options)
    measured: Mapping[str, Any] = field(default_factory=dict)
    count: int | None = None
    files: Sequence[str] = ()
    chosen: NDArray[np.bool_] | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width of every image; of vectors, the number of features alone."""
        return self.test.images.shape[1:]

    @cached_property
    def mean(self) -> list[float]:
        """The mean of each channel, in units of 255, or of each feature of vectors: what the spec
        says, else that of the training images, or of the test images if there are no training
        images."""
        known = self.options.mean or self.measured.get("mean")
        return known or [mean for mean, _ in self._statistics]

    @cached_property
    def std(self) -> list[float]:
        """The standard deviation of each channel or feature, of the images and in the units of
        `mean`; 1 if it is constant."""
        known = self.options.std or self.measured.get("std")
        return known or [std or 1.0 for _, std in self._statistics]

    @cached_property
    def _statistics(self) -> list[tuple[float, float]]:
        """Mean and standard deviation of each channel or feature; 0 if and only if it is
        constant."""
        images = (self.train if len(self.train) else self.test).images
        return channel_statistics(images) if images.ndim == 4 else feature_statistics(images)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pixels and labels of both splits: equal content, equal fingerprint."""
        known = self.measured.get("fingerprint")
        return known or fingerprint(
            (split.images, split.labels) for split in (self.train, self.test)
        )

    def metadata(self) -> dict[str, Any]:
        """What checkpoints and label files record of their data set."""
        bits = self.measured.get("bits")
        return {
            "name": self.name,
            "train": len(self.train),
            "test": len(self.test),
            "image_shape": list(self.image_shape),
            "classes": list(self.classes),
            "mean": self.mean,
            "std": self.std,
            "fingerprint": self.fingerprint,
            **({"bits": bits} if bits else {}),
        }


def load(
    spec: str,
    folder: Path | None = None,
    *,
    progress: Progress = silent,
    training: bool = False,
    memory: int = MEMORY,
) -> Dataset:
    """Read the data set that a spec names; `memtool.data.spec` says what specs there are.

    `folder` is where torchvision's data sets are, or are downloaded to; by default, that is
    MEMTOOL_DATA or `memtool` in the user's cache. `progress` is told how many images are read or
    resized. Image files whose pixels take more than `memory` bytes are decoded into a file, once;
    the images are then a map of it (see `cache`).

    Raises MemtoolError for a spec that is not understood, for arrays, as they are or resized, that
    take more than `memory` bytes (they are not read first), for images, labels or files that are
    missing or cannot be read, for images of different sizes and, with `training`, for a data set
    without training images.

    >>> digits = load("digits")
    >>> len(digits.train), len(digits.test)
    (1297, 500)
    >>> len(load("digits?samples_train=100").train), len(load("digits?samples=100").test)
    (100, 100)
    """
    source, options = parse(spec)
    if training and options.samples:
        raise MemtoolError(f"{spec}: samples is for comparing, not for training; leave it out")
    listing = listed(source, folder, memory=memory).numbered()
    whole = len(listing.test if listing.train is None else listing.train)
    for part in (listing.train, listing.test):
        if part is not None:
            part.check(spec)
    if options.split_at is not None:
        listing = divided(listing, options.split_at, spec)
    there = listing.count
    if options.samples_train is not None:
        listing = with_fewer(listing, options.samples_train)
    count = listing.count
    if options.samples is not None:
        listing = sampled(listing, options.samples)
    if listing.count == there:
        options = replace(options, samples=None, samples_train=None)  # nothing is left out
    if training and listing.train is None:
        raise MemtoolError(
            f"{spec}: has no training images; say how much is for training (--split-at 80%)"
        )
    _warn_of_untrained_classes(spec, listing)
    test = listing.test
    train = test[:0] if listing.train is None else listing.train
    content = _content([train, test], spec, options, memory, progress)
    _check_channels(spec, options, content.images)
    border = len(train)
    return Dataset(
        name=spec,
        classes=listing.classes,
        train=content.split(slice(border), train.labels),
        test=content.split(slice(border, None), test.labels),
        options=options,
        measured=content.measured,
        count=count,
        files=train.items.tolist() if train.items.dtype == object else (),
        chosen=None if train.numbers is None else np.isin(np.arange(whole), train.numbers),
    )


def _warn_of_untrained_classes(spec: str, listing: Listing) -> None:
    """Warn of classes of test images that no training image has, by itself or as it was divided."""
    if listing.train is None:
        return
    missing = np.setdiff1d(listing.test.labels, listing.train.labels)
    if missing.size:
        more = f" (one of {missing.size} such classes)" if missing.size > 1 else ""
        logger.warning(
            f"{spec}: class {listing.classes[missing[0]]!r} occurs among the test labels alone"
            f"{more}; label noise may draw it nevertheless"
        )


def _content(
    parts: Sequence[Examples],
    spec: str,
    options: Options,
    memory: int,
    progress: Progress,
) -> AllImages:
    """All images, or vectors, of the parts one after another, in memory or in a file."""
    each = [part.items for part in parts]
    items = np.concatenate(each) if all(map(len, each)) else max(each, key=len)
    if items.dtype != object:
        images = _images(items, spec, options, progress, memory)
        return AllImages(images if images.ndim == 2 else with_channels(images, options.channels))
    paths = list(items)
    shape = shape_of(paths, options)
    if shape and math.prod(shape) > memory:
        labels = [part.labels for part in parts]
        return cached(paths, labels, shape, spec, options, progress)
    with progress(f"reading {spec}", len(paths)) as advance:
        images, notes, bits = decoded(paths, spec, options, advance)
    for note in notes:
        logger.info(note)
    return AllImages(images, measured={"bits": bits})


def _images(
    items: NDArray[Any], spec: str, options: Options, progress: Progress, memory: int
) -> NDArray[Any]:
    """Images, (n, c, h, w), resized as needed; vectors (n, d) as they are."""
    size = options.image_size
    if items.ndim == 2:
        for name in ("image_size", *RESIZING, "channels", "orient", "bits"):
            if getattr(options, name) is not None:
                raise MemtoolError(f"{spec}: {name} is for images, these are vectors; leave it out")
        return np.ascontiguousarray(items)
    for name in ("orient", "bits"):
        if getattr(options, name) is not None:
            raise MemtoolError(f"{spec}: {name} is for folders of image files; leave it out")
    if size is None or (items.shape[2:] == (size, size) and not options.follows_timm):
        return np.ascontiguousarray(items)
    with progress(f"resizing {spec}", len(items)) as advance:
        return resized(items, options, advance, memory)


def _check_channels(spec: str, options: Options, images: NDArray[Any]) -> None:
    """Raise MemtoolError unless the mean and std that a spec gives have a value per channel."""
    have = f"the images {images.shape[1]} channels"
    if images.ndim == 2:
        have = f"the vectors {images.shape[1]} features"
    for name, values in (("mean", options.mean), ("std", options.std)):
        if values and len(values) != images.shape[1]:
            raise MemtoolError(f"{spec}: {name} has {len(values)} values, {have}")


def normalize(images: "torch.Tensor", mean: list[float], std: list[float]) -> "torch.Tensor":
    """uint8 images (n, c, h, w) as float32: (images / 255 - mean) / std, channel by channel.

    Vectors, float32 (n, d), become (vectors - mean) / std, feature by feature. Raises MemtoolError
    for another number of channels or features, and for images that are no whole numbers.

    >>> import torch
    >>> normalize(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), [0.5], [0.25]).unique()
    tensor([2.])
    >>> normalize(torch.tensor([[7.0, 8.0]]), [5.0, 5.0], [2.0, 1.0])
    tensor([[1., 3.]])
    """
    import torch

    if images.shape[1] != len(mean) or len(mean) != len(std):
        raise MemtoolError(
            f"{told_shape(images.shape[1:])} cannot be normalized by a mean of {len(mean)} numbers "
            f"and a standard deviation of {len(std)}"
        )
    # Floats are in [0, 1], or normalized, as a rule: divided by 255 they would all be black.
    is_whole = not (images.is_floating_point() or images.is_complex() or images.dtype == torch.bool)
    if images.ndim == 4 and not is_whole:
        raise MemtoolError(
            f"images are uint8, 0 to 255, not {str(images.dtype).removeprefix('torch.')}; make "
            "those in [0, 1] whole: (255 * images).round().to(torch.uint8)"
        )
    unit = 255 if images.ndim == 4 else 1
    shape = (1, -1, *[1] * (images.ndim - 2))
    offset, scale = _on_device(tuple(mean), tuple(std), unit, images.device)
    return images.to(torch.float32, copy=True).sub_(offset.view(shape)).div_(scale.view(shape))


@lru_cache(maxsize=16)
def _on_device(
    mean: tuple[float, ...], std: tuple[float, ...], unit: int, device: "torch.device"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Mean and deviation in the units of pixels. They are kept: a training step that waited for
    them to get to the device would take longer."""
    import torch

    with torch.inference_mode(False):  # whichever mode asks first
        offset, scale = (
            torch.tensor(values, dtype=torch.float32).mul(unit).to(device) for values in (mean, std)
        )
    return offset, scale
