"""Image files, or images of another size, become one uint8 array."""

import logging
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from memtool import MemtoolError
from memtool.data.listing import Images
from memtool.data.pictures import Picture, Remark, read
from memtool.data.resizing import fitted
from memtool.data.spec import Options, with_options
from memtool.device import machine_memory, processors
from memtool.errors import counted, told_names, told_size
from memtool.progress import Advance

Item = TypeVar("Item")
Shape = tuple[int, int, int, int]  # images, channels, height, width

THREADED_FILE_SIZE = 16_000  # bytes; see `_mapped`
DEPTHS = (8, 10, 12, 14, 16)  # bits per value, as sensors have them
STEP = 64  # images from one step of progress to the next: some milliseconds, or a second
AHEAD = 4  # images that each thread may be ahead of those that have their place already


class Decoded(NamedTuple):
    """The images in files, (n, c, h, w), what is to be told of them, and how many bits per value
    became the 8 that they have; None where no file has more than 8."""

    images: Images
    notes: list[str]
    bits: int | None


def check_memory(size: int, what: str, memory: int | None = None) -> None:
    """Raise MemtoolError, which names `what`, if `size` bytes are more than `memory`, which the
    user has allowed, or than there is."""
    if memory is not None and size > memory:
        raise MemtoolError(
            f"{what}: would take {told_size(size)}, more than --memory ({told_size(memory)}); "
            f"allow more (--memory {math.ceil(size / 2**30)}GiB), or take smaller images or "
            "fewer of them"
        )
    machine = machine_memory()
    if size > machine:
        raise MemtoolError(
            f"{what}: would take {told_size(size)}, but there is {told_size(machine, up=False)}; "
            "take smaller images or fewer of them (--image-size, --samples), or allow image files "
            "less (--memory), so that they are decoded into a file"
        )


def resized(images: Images, options: Options, advance: Advance, memory: int) -> Images:
    """Images (n, c, h, w), c being 1 or 3, as (n, c, size, size), made by `fitted`, which may bring
    them into color. `advance` is told of n images. Raises MemtoolError as `fitted` does, and if
    they would take more than `memory` bytes."""
    from PIL import Image

    size = options.image_size
    assert size
    result: Images | None = None
    for index, image in enumerate(_counted(images, advance)):
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        pixels = np.atleast_3d(np.asarray(fitted(picture, options))).transpose(2, 0, 1)
        if result is None:
            result = allocated((len(images), len(pixels), size, size), memory)
        result[index] = pixels
    assert result is not None
    return result


def shape_of(paths: Sequence[str], options: Options) -> Shape | None:
    """The shape (n, c, h, w) of the images in n files, if they are all as large as the first one
    that can be read, and in color unless `options` say otherwise; None if none can be read."""
    channels, size = options.channels or 3, options.image_size
    if size is not None:
        return len(paths), channels, size, size
    with _strict():
        pictures = (read(path, options) for path in paths)
        first = next((picture for picture in pictures if not isinstance(picture, str)), None)
    return (len(paths), channels, *first.pixels.shape[:2]) if first else None


def allocated(shape: Shape, memory: int | None = None) -> Images:
    """An array for images, in memory. Raises MemtoolError as `check_memory` does."""
    images, _, height, width = shape
    check_memory(math.prod(shape), f"{counted(images, 'image')} of {width}x{height} pixels", memory)
    return np.empty(shape, dtype=np.uint8)


def decoded(
    paths: list[str],
    name: str,
    options: Options,
    advance: Advance,
    room: Callable[[Shape], Images] | None = None,
) -> Decoded:
    """The images in n files, read as `options` say: `orient`, `bits`, `channels`, and resized by
    `fitted`.

    Unless `channels` says how many, they have one channel if all are gray, else three. Of files
    with more than 8 bits per value, 0 becomes 0 and 2**bits - 1 becomes 255; by default that is for
    the bits which the largest value in all of these files needs. The notes tell how many files are
    transparent, CMYK and so on, and what was done about it; they call the data set `name`.
    `advance` is told of n images.

    `room` gives the array in which they are put, in memory by default. What it gives need not fit
    into memory: no more than a few images are there at a time. It may be called a second time, when
    the first image in color comes after gray ones.

    Raises MemtoolError if some files cannot be read, naming the first of them, or if the images
    differ in size.
    """
    album = _Album(paths, options, room)
    with _strict():
        with _mapped(album.read, paths) as pictures:
            for index, picture in enumerate(_counted(pictures, advance)):
                album.add(index, picture)
        return album.finished(name)


class _Album:
    """The array that many pictures are put into one by one, and what is to be told of them."""

    def __init__(
        self, paths: list[str], options: Options, room: Callable[[Shape], Images] | None
    ) -> None:
        self.paths, self.options = paths, options
        self.read = partial(read, options=options)
        self.room = room or allocated
        self.is_in_memory = room is None
        self.broken: list[str] = []
        self.told: dict[str, list[str]] = {}
        self.gray: list[str] = []
        self.has_color = False
        self.deep: dict[int, Picture] = {}
        self.bits: int | None = None
        self.images: Images | None = None

    def add(self, index: int, picture: Picture | str) -> None:
        """Put a picture into its place, or remember why there is none."""
        path = self.paths[index]
        if isinstance(picture, str):
            self.broken.append(f"{path} ({picture})")
            return
        for remark in sorted(picture.remarks):
            self.told.setdefault(remark, []).append(path)
        self._make_room(index, picture)
        if picture.peak is None:
            self._place(index, picture.pixels)
        elif self.is_in_memory:
            self.deep[index] = picture
        else:  # read again when the largest value is known
            self.deep[index] = picture._replace(pixels=np.empty(0))

    def _make_room(self, index: int, picture: Picture) -> None:
        path, (height, width) = self.paths[index], picture.pixels.shape[:2]
        color = picture.pixels.ndim == 3
        if not color:
            self.gray.append(path)
        self.has_color |= color
        if self.images is None:
            self.first = path
            channels = self.options.channels or (3 if color else 1)
            self.images = self.room((len(self.paths), channels, height, width))
        elif self.images.shape[2:] != (height, width):
            raise MemtoolError(
                f"{path}: is {width}x{height}, but {self.first} is "
                f"{self.images.shape[3]}x{self.images.shape[2]}; bring all images to one size "
                "(--image-size N)"
            )
        elif color and self.images.shape[1] == 1 and self.options.channels is None:
            self.images = self._in_color(self.images, index)
        if picture.peak is not None and not self.deep and self.is_in_memory:
            # Until the largest value is known, they are kept with 16 bits.
            check_memory(
                3 * self.images.size, f"{counted(len(self.paths), 'image')} with 16 bits per value"
            )

    def _in_color(self, gray: Images, count: int) -> Images:
        """Room for three channels, with the first `count` images, which are gray, in place."""
        images, _, height, width = gray.shape
        color = self.room((images, 3, height, width))
        for start in range(0, count, STEP):
            part = slice(start, min(start + STEP, count))
            color[part] = gray[part]
        return color

    def _place(self, index: int, pixels: Images) -> None:
        """Put one image, (h, w) or (h, w, 3), into its place, in as many channels as there are."""
        assert self.images is not None
        image = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        self.images[index] = with_channels(image[None], self.images.shape[1])[0]

    def finished(self, name: str) -> Decoded:
        """All images; raises MemtoolError if some cannot be read."""
        if self.broken or self.images is None:
            raise MemtoolError(
                f"{len(self.broken)} of {len(self.paths)} images cannot be read: "
                f"{told_names(self.broken, 3)}"
            )
        if self.deep:
            self._place_deep(name, self.options.bits)
        if self.has_color and self.gray and self.options.channels != 1:
            self.told["are gray, and get three equal channels, since others are in color"] = (
                self.gray
            )
        notes = [
            f"{name}: {len(paths)} of {len(self.paths)} images {what} ({paths[0]})"
            for what, paths in self.told.items()
        ]
        return Decoded(self.images, notes, self.bits)

    def _place_deep(self, name: str, bits: int | None) -> None:
        """Reduce the values of the deep pictures to 8 bits, all of them by the same factor."""
        peak = max(picture.peak or 0 for picture in self.deep.values())
        found = next(depth for depth in DEPTHS if peak < 2**depth)
        if bits is not None and peak >= 2**bits:
            raise MemtoolError(f"{name}: has values up to {peak}, which need more than {bits} bits")
        if bits is None and found < DEPTHS[-1] and self.options.is_part:
            raise MemtoolError(
                f"{name}: its images have more than 8 bits per value, and part of them does not "
                f"tell how many; say so: {with_options(name, bits=found)!r}, if it is {found}"
            )
        self.bits = bits or found
        top = 2**self.bits - 1
        if top < 65535 and Remark.high_bytes in self.told:
            raise MemtoolError(
                f"{self.told[Remark.high_bytes][0]}: only the upper 8 of 16 bits are read from "
                f"TIFF in color, and no image has values above {peak}; save it as PNG"
            )
        for index, deep in self._deep_pixels():
            pixels = np.rint(deep * (255 / top)).clip(0, 255)  # beyond by interpolation
            self._place(index, pixels.astype(np.uint8))
        self.told[
            f"have more than 8 bits per value; their values go up to {peak}, and 0..{top} becomes "
            "0..255 (bits=N says how many bits they have)"
        ] = [self.paths[index] for index in self.deep]

    def _deep_pixels(self) -> Iterator[tuple[int, Images]]:
        """The place and the pixels of each deep picture, read again if they were not kept."""
        if self.is_in_memory:
            yield from ((index, picture.pixels) for index, picture in self.deep.items())
            return
        with _mapped(self.read, [self.paths[index] for index in self.deep]) as pictures:
            for index, picture in zip(self.deep, pictures, strict=True):
                if isinstance(picture, str) or picture.peak != self.deep[index].peak:
                    raise MemtoolError(f"{self.paths[index]}: has changed while it was read")
                yield index, picture.pixels


def with_channels(images: Images, channels: int | None) -> Images:
    """Images (n, c, h, w) with this many channels, 1 or 3; None leaves them as they are.

    Gray is 0.299 R + 0.587 G + 0.114 B, rounded as PIL does it.
    """
    if channels in (None, images.shape[1]):
        return images
    if channels == 3:
        return images.repeat(3, axis=1)
    weights = np.array([19595, 38470, 7471], dtype=np.uint32)
    gray = np.empty((len(images), 1, *images.shape[2:]), dtype=np.uint8)
    for start in range(0, len(images), STEP):
        chunk = images[start : start + STEP].astype(np.uint32)
        gray[start : start + STEP, 0] = (np.einsum("nchw,c->nhw", chunk, weights) + 32768) >> 16
    return gray


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
    threads = min(32, processors() + 4)  # as ThreadPoolExecutor has by default
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield _in_order(pool, function, paths, AHEAD * threads)
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, function: "partial[Picture | str]", paths: Iterable[str], ahead: int
) -> Iterator[Picture | str]:
    """As `pool.map`, which keeps all results that are not taken yet; here these are at most
    `ahead`."""
    waiting: deque[Future[Picture | str]] = deque()
    for path in paths:
        waiting.append(pool.submit(function, path))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
