"""Image files, or images of another size, become one uint8 array."""

import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import numpy as np

from memtool import MemtoolError
from memtool.data.listing import Images
from memtool.data.pictures import Picture, Remark, read
from memtool.data.resizing import fitted
from memtool.data.spec import Options
from memtool.progress import Advance

Item = TypeVar("Item")
logger = logging.getLogger("memtool")

THREADED_FILE_SIZE = 16_000  # bytes; see `_mapped`
DEPTHS = (8, 10, 12, 14, 16)  # bits per value, as sensors have them
STEP = 64  # images from one step of progress to the next: some milliseconds, or a second


def check_memory(size: int, what: str) -> None:
    """Raise MemtoolError, which names `what`, if `size` bytes are more than this machine has."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return
    if size > memory:
        raise MemtoolError(
            f"{what}: take {size / 2**30:,.1f} GiB, this machine has {memory / 2**30:,.1f}; take "
            "smaller images or fewer of them (--image-size, --samples)"
        )


def resized(images: Images, options: Options, advance: Advance) -> Images:
    """Images (n, c, h, w), c being 1 or 3, as (n, c, size, size), made by `fitted`, which may bring
    them into color. `advance` is told of n images. Raises MemtoolError as `fitted` does."""
    from PIL import Image

    size = options.image_size
    assert size
    result: Images | None = None
    for index, image in enumerate(_counted(images, advance)):
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        pixels = np.atleast_3d(np.asarray(fitted(picture, options))).transpose(2, 0, 1)
        if result is None:
            result = _allocated(len(images), len(pixels), size, size)
        result[index] = pixels
    assert result is not None
    return result


def decoded(paths: list[str], name: str, options: Options, advance: Advance) -> Images:
    """The images in n files, (n, c, h, w), read as `options` say: `orient`, `bits`, and resized by
    `fitted`.

    They have one channel if all are gray, else three. Of files with more than 8 bits per value, 0
    becomes 0 and 2**bits - 1 becomes 255; by default that is for the bits which the largest value
    in all of these files needs. Notes tell how many files are transparent, CMYK and so on, and what
    was done about it; they call the data set `name`. `advance` is told of n images.

    Raises MemtoolError if some files cannot be read, naming the first of them, or if the images
    differ in size.
    """
    album = _Album(paths)
    reading = partial(read, options=options)
    with _strict(), _mapped(reading, paths) as pictures:
        for index, picture in enumerate(_counted(pictures, advance)):
            album.add(index, picture)
    return album.finished(name, options.bits)


class _Album:
    """The array that many pictures are put into one by one, and what is to be told of them."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        self.broken: list[str] = []
        self.told: dict[str, list[str]] = {}
        self.gray: list[str] = []
        self.deep: dict[int, Picture] = {}
        self.images: Images | None = None

    def add(self, index: int, picture: Picture | str) -> None:
        """Put a picture into its place, or remember why there is none."""
        path = self.paths[index]
        if isinstance(picture, str):
            self.broken.append(f"{path} ({picture})")
            return
        for remark in sorted(picture.remarks):
            self.told.setdefault(remark, []).append(path)
        if picture.pixels.ndim == 2:
            self.gray.append(path)
        self._make_room(path, picture)
        if picture.peak is None:
            self._place(index, picture.pixels)
        else:
            self.deep[index] = picture

    def _make_room(self, path: str, picture: Picture) -> None:
        height, width = picture.pixels.shape[:2]
        color = picture.pixels.ndim == 3
        if self.images is None:
            self.first = path
            self.images = _allocated(len(self.paths), 3 if color else 1, height, width)
        elif self.images.shape[2:] != (height, width):
            raise MemtoolError(
                f"{path}: is {width}x{height}, but {self.first} is "
                f"{self.images.shape[3]}x{self.images.shape[2]}; bring all images to one size "
                "(--image-size N)"
            )
        elif color and self.images.shape[1] == 1:  # the first one in color
            self.images = self.images.repeat(3, axis=1)
        if picture.peak is not None and not self.deep:
            # Until the largest value is known, they are kept with 16 bits.
            check_memory(3 * self.images.size, f"{len(self.paths)} images with 16 bits per value")

    def _place(self, index: int, pixels: Images) -> None:
        """Put one image, (h, w) or (h, w, 3), into its place; a gray one into all channels."""
        assert self.images is not None
        self.images[index] = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def finished(self, name: str, bits: int | None) -> Images:
        """All images; raises MemtoolError if some cannot be read."""
        if self.broken or self.images is None:
            more = f" and {len(self.broken) - 3} more" if len(self.broken) > 3 else ""
            raise MemtoolError(
                f"{len(self.broken)} of {len(self.paths)} images cannot be read: "
                f"{', '.join(self.broken[:3])}{more}"
            )
        if self.deep:
            self._place_deep(name, bits)
        if self.images.shape[1] == 3 and self.gray:
            self.told["are gray, and get three equal channels, since others are in color"] = (
                self.gray
            )
        for what, paths in self.told.items():
            logger.info(f"{name}: {len(paths)} of {len(self.paths)} images {what} ({paths[0]})")
        return self.images

    def _place_deep(self, name: str, bits: int | None) -> None:
        """Reduce the values of the deep pictures to 8 bits, all of them by the same factor."""
        peak = max(picture.peak or 0 for picture in self.deep.values())
        found = next(depth for depth in DEPTHS if peak < 2**depth)
        if bits is not None and peak >= 2**bits:
            raise MemtoolError(f"{name}: has values up to {peak}, which need more than {bits} bits")
        top = 2 ** (bits or found) - 1
        if top < 65535 and Remark.high_bytes in self.told:
            raise MemtoolError(
                f"{self.told[Remark.high_bytes][0]}: only the upper 8 of 16 bits are read from "
                f"TIFF in color, and no image has values above {peak}; save it as PNG"
            )
        for index, picture in self.deep.items():
            pixels = np.rint(picture.pixels * (255 / top)).clip(0, 255)  # beyond by interpolation
            self._place(index, pixels.astype(np.uint8))
        self.told[
            f"have more than 8 bits per value; their values go up to {peak}, and 0..{top} becomes "
            "0..255 (bits=N says how many bits they have)"
        ] = [self.paths[index] for index in self.deep]


def _allocated(images: int, channels: int, height: int, width: int) -> Images:
    shape = (images, channels, height, width)
    check_memory(math.prod(shape), f"{images} images of {width}x{height} pixels")
    return np.empty(shape, dtype=np.uint8)


def _counted(items: Iterable[Item], advance: Advance) -> Iterator[Item]:
    """The items as they are; `advance` is told when STEP of them are done, and at the end."""
    done = 0
    for item in items:
        yield item
        done += 1
        if done % STEP == 0:
            advance(STEP)
    advance(done % STEP)


@contextmanager
def _strict() -> Iterator[None]:
    """Make images too large to be true an error; ignore what else PIL warns of (metadata)."""
    from PIL import Image

    logging.getLogger("PIL").addHandler(logging.NullHandler())  # else stderr gets its errors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def _mapped(
    function: "partial[Picture | str]", paths: list[str]
) -> Iterator[Iterable[Picture | str]]:
    """`function` of each path, in order, computed by several threads if that is faster.

    PIL releases the interpreter while it decodes, but the threads compete for it before and after
    that: small files (a few kB) are read faster by a single thread.
    """
    sizes = [
        os.path.getsize(path) for path in paths[:: len(paths) // 64 + 1] if os.path.exists(path)
    ]
    if not sizes or sum(sizes) / len(sizes) < THREADED_FILE_SIZE:
        yield map(function, paths)
        return
    with ThreadPoolExecutor() as pool:
        try:
            yield pool.map(function, paths)
        finally:
            pool.shutdown(cancel_futures=True)
