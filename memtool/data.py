"""Data sets: a name or a folder becomes uint8 images and labels. No noise, no models."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError

if TYPE_CHECKING:
    import torch

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
DIGITS_TEST_SIZE = 500
NAMES = ("digits", "folder:PATH")


@dataclass(frozen=True)
class Split:
    """Images, uint8 (n, channels, height, width), and their true labels, int64 (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the names of the classes; `name` is the spec as typed."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @cached_property
    def mean(self) -> list[float]:
        """Mean of each channel over the training images, in units of 255."""
        return [float(channel.mean()) / 255 for channel in self._channels()]

    @cached_property
    def std(self) -> list[float]:
        """Standard deviation of each channel over the training images, in units of 255; 1 where a
        channel is constant."""
        return [float(channel.std()) / 255 or 1.0 for channel in self._channels()]

    def _channels(self) -> Iterator[NDArray[np.uint8]]:
        return iter(self.train.images.swapaxes(0, 1))

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


def load(spec: str) -> Dataset:
    """The data set that `spec` names: `digits` or `folder:PATH`. Raises MemtoolError."""
    if spec == "digits":
        return _digits()
    if spec.startswith("folder:"):
        return _folder(spec)
    nearest = get_close_matches(spec, ["digits", "folder:"], n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    if Path(spec).is_dir():
        hint = f"; did you mean 'folder:{spec}'?"
    raise MemtoolError(f"unknown data set {spec!r}{hint} (known: {', '.join(NAMES)})")


def _digits() -> Dataset:
    """Optical Recognition of Handwritten Digits, test part: 1,797 images of 8x8, values 0..16.

    E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository, DOI 10.24432/C50P49,
    CC BY 4.0.
    """
    from safetensors.numpy import load

    arrays = load(resources.files("memtool").joinpath("digits.safetensors").read_bytes())
    images, labels = arrays["images"][:, None], arrays["labels"].astype(np.int64)
    test = _stratified(labels, DIGITS_TEST_SIZE)
    return Dataset(
        name="digits",
        classes=tuple("0123456789"),
        train=Split(images[~test], labels[~test]),
        test=Split(images[test], labels[test]),
    )


def _stratified(labels: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """Which `size` of the n examples are for testing, (n,): every class in proportion.

    Spread evenly over the file, whose order goes writer by writer, so that each writer is in both
    splits; no random numbers, so the split is the same everywhere. The classes with the largest
    remainders get what rounding down leaves.
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


def _folder(spec: str) -> Dataset:
    """`folder:PATH` with PATH/train/CLASS/* and PATH/test/CLASS/*: images of one size."""
    root = Path(spec.removeprefix("folder:"))
    if not root.is_dir():
        raise MemtoolError(f"{root}: no such folder (from data set {spec!r})")
    classes = _class_names(root / "train")
    unknown = set(_class_names(root / "test")) - set(classes)
    if unknown:
        raise MemtoolError(f"{root / 'test'}: class {min(unknown)!r} is not in {root / 'train'}")
    files = {
        part: [
            (path, label)
            for label, name in enumerate(classes)
            for path in _image_files(root / part / name)
        ]
        for part in ("train", "test")
    }
    for part, found in files.items():
        if not found:
            raise MemtoolError(f"{root / part}: holds no images ({_suffixes()})")
    images = _decode([path for part in files.values() for path, _ in part])
    labels = np.array([label for part in files.values() for _, label in part], dtype=np.int64)
    border = len(files["train"])
    return Dataset(
        name=spec,
        classes=tuple(classes),
        train=Split(images[:border], labels[:border]),
        test=Split(images[border:], labels[border:]),
    )


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise MemtoolError(f"{folder}: no such folder; it should hold one folder for each class")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not names:
        raise MemtoolError(f"{folder}: holds no images; it should hold one folder for each class")
    return names


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():  # a class that one split lacks
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _decode(paths: list[Path]) -> NDArray[np.uint8]:
    """Images as uint8 (n, c, h, w): one channel if all are gray, else three."""
    with ThreadPoolExecutor() as pool:  # PIL lets go of the interpreter while it decodes
        decoded = list(pool.map(_decode_one, paths))
    gray = all(image.ndim == 2 for image in decoded)
    first = decoded[0].shape[:2]
    for path, image in zip(paths, decoded, strict=True):
        if image.shape[:2] != first:
            height, width = image.shape[:2]
            raise MemtoolError(
                f"{path}: is {width}x{height}, but {paths[0]} is {first[1]}x{first[0]}; "
                "all images of a data set must have one size"
            )
    if gray:
        return np.stack(decoded)[:, None]
    colored = [image if image.ndim == 3 else image[..., None].repeat(3, -1) for image in decoded]
    return np.ascontiguousarray(np.stack(colored).transpose(0, 3, 1, 2))


def _decode_one(path: Path) -> NDArray[np.uint8]:
    """(h, w) if the image is gray, else (h, w, 3)."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L" if image.mode in ("L", "1") else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MemtoolError(f"{path}: not an image that can be read ({error})") from error


def normalize(images: "torch.Tensor", mean: list[float], std: list[float]) -> "torch.Tensor":
    """uint8 (n, c, h, w) to float32: (images / 255 - mean) / std, channel by channel."""
    import torch

    shape = (1, -1, 1, 1)
    # Made on the host and sent without waiting: this runs in every training step.
    offset = torch.tensor(mean).mul(255).view(shape).to(images.device, non_blocking=True)
    scale = torch.tensor(std).mul(255).view(shape).to(images.device, non_blocking=True)
    return images.float().sub_(offset).div_(scale)
