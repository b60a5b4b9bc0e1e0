"""Data sets: a spec becomes uint8 images and labels. No noise, no models."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.data.images import Images, decoded, resized
from memtool.data.sources import Labels, Listing, listed, stratified
from memtool.data.spec import Options, parse
from memtool.progress import Progress, silent

if TYPE_CHECKING:
    import torch

CHUNK = 256  # images counted at a time


@dataclass(frozen=True)
class Split:
    """Images, uint8 (n, channels, height, width), and their true labels, int64 (n,)."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


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


def load(
    spec: str,
    folder: Path | None = None,
    progress: Progress = silent,
    training: bool = False,
) -> Dataset:
    """The data set that `spec` names. Raises MemtoolError.

    `folder` is where torchvision's data sets are, or are downloaded to. With `training`, a data set
    without training images is an error.
    """
    source, options = parse(spec)
    if training and options.samples:
        raise MemtoolError(f"{spec}: samples is for comparing, not for training; leave it out")
    listing = _divided(listed(source, folder, progress), spec, options)
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


def _divided(listing: Listing, spec: str, options: Options) -> Listing:
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
        test = stratified(labels, len(labels) - count)
        listing = replace(
            listing, train=(items[~test], labels[~test]), test=(items[test], labels[test])
        )
    if options.samples is not None:
        items, labels = listing.test
        chosen = stratified(labels, min(options.samples, len(labels)))
        listing = replace(listing, train=None, test=(items[chosen], labels[chosen]))
    return listing


def _images(parts: list[NDArray[Any]], spec: str, size: int | None, progress: Progress) -> Images:
    """All images of the parts one after another, (n, c, h, w), read and resized as needed."""
    items = np.concatenate(parts) if all(map(len, parts)) else max(parts, key=len)
    if items.dtype == object:
        with progress(f"reading {spec}", len(items)) as advance:
            return decoded(list(items), size, advance)
    if size is None or items.shape[2:] == (size, size):
        return np.ascontiguousarray(items)
    with progress(f"resizing {spec}", len(items)) as advance:
        return resized(items, size, advance)


def normalize(images: "torch.Tensor", mean: list[float], std: list[float]) -> "torch.Tensor":
    """uint8 (n, c, h, w) to float32: (images / 255 - mean) / std, channel by channel."""
    import torch

    shape = (1, -1, 1, 1)
    # Made on the host and sent without waiting: this runs in every training step.
    offset = torch.tensor(mean).mul(255).view(shape).to(images.device, non_blocking=True)
    scale = torch.tensor(std).mul(255).view(shape).to(images.device, non_blocking=True)
    return images.float().sub_(offset).div_(scale)
