"""Image files, or images of another size, become one uint8 array."""

import logging
import math
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from memtool import MemtoolError
from memtool.data.listing import Images
from memtool.errors import last_line
from memtool.progress import Advance

if TYPE_CHECKING:
    from PIL import Image

Item = TypeVar("Item")

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
THREADED_FILE_SIZE = 16_000  # bytes; see `_mapped`
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


def resized(images: Images, size: int, advance: Advance) -> Images:
    """Images (n, c, h, w), c being 1 or 3, as (n, c, size, size): the shorter side is resized to
    `size` pixels and the middle square cropped. `advance` is told of n images."""
    from PIL import Image

    result = _allocated(len(images), images.shape[1], size, size)
    for index, image in enumerate(_counted(images, advance)):
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        _place(result, index, np.asarray(_square(picture, size)))
    return result


def decoded(paths: list[str], size: int | None, advance: Advance) -> Images:
    """The images in n files, (n, c, h, w), resized as by `resized` if there is a `size`.

    They have one channel if all are gray, else three; transparency is dropped. `advance` is told of
    n images. Raises MemtoolError if some files cannot be read, naming the first of them, or if the
    images differ in size.
    """
    images: Images | None = None
    broken: list[str] = []
    with _strict(), _mapped(partial(_picture, size=size), paths) as pictures:
        for index, picture in enumerate(_counted(pictures, advance)):
            if isinstance(picture, str):
                broken.append(f"{paths[index]} ({picture})")
                continue
            height, width = picture.shape[:2]
            if images is None:
                first = paths[index]
                images = _allocated(len(paths), 1 if picture.ndim == 2 else 3, height, width)
            elif images.shape[2:] != (height, width):
                raise MemtoolError(
                    f"{paths[index]}: is {width}x{height}, but {first} is "
                    f"{images.shape[3]}x{images.shape[2]}; bring all images to one size "
                    "(--image-size N)"
                )
            elif picture.ndim == 3 and images.shape[1] == 1:  # the first one in color
                images = images.repeat(3, axis=1)
            _place(images, index, picture)
    if broken or images is None:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise MemtoolError(
            f"{len(broken)} of {len(paths)} images cannot be read: {', '.join(broken[:3])}{more}"
        )
    return images


def _allocated(images: int, channels: int, height: int, width: int) -> Images:
    shape = (images, channels, height, width)
    check_memory(math.prod(shape), f"{images} images of {width}x{height} pixels")
    return np.empty(shape, dtype=np.uint8)


def _place(images: Images, index: int, image: Images) -> None:
    """Put one image, (h, w) or (h, w, 3), into its place; a gray one into all channels."""
    images[index] = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


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
    function: "partial[Images | str]", paths: list[str]
) -> Iterator[Iterable[Images | str]]:
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


def _picture(path: str, size: int | None) -> Images | str:
    """One image, (h, w) if it is gray, else (h, w, 3); or, as text, why it cannot be read."""
    from PIL import Image

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a named pipe would wait forever
            return "not a regular file"
        with Image.open(path) as image:
            picture = _eight_bits(image)
            return np.asarray(_square(picture, size) if size else picture)
    except OSError as error:
        return error.strerror or "not an image"
    except Exception as error:  # broken files make PIL raise nearly anything
        return last_line(error)


def _eight_bits(image: "Image.Image") -> "Image.Image":
    """The image in mode L if it is gray, else in mode RGB."""
    from PIL import Image

    if image.mode in ("L", "RGB"):
        image.load()
        return image
    if image.mode == "F":
        raise ValueError("its pixels are floats")
    if image.mode.startswith("I"):  # 16 bits, sometimes kept in 32
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels have more than 16 bits")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _square(image: "Image.Image", size: int) -> "Image.Image":
    """The middle square of the image, of the length of its shorter side, resized with antialiasing.

    The outermost pixels take in a little of what is cut off, as if it were cut after resizing.
    """
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
