"""Image files become one uint8 array."""

import logging
import math
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.errors import last_line

if TYPE_CHECKING:
    from PIL import Image

Images = NDArray[np.uint8]

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
THREADED_FILE_SIZE = 16_000  # bytes
CHUNK = 256  # images from one step of progress to the next


def _allocated(images: int, channels: int, height: int, width: int) -> Images:
    shape = (images, channels, height, width)
    check_memory(math.prod(shape), f"{images} images of {width}x{height} pixels")
    return np.empty(shape, dtype=np.uint8)


def check_memory(size: int, what: str) -> None:
    """Raise MemtoolError if `size` bytes are more than this machine has memory."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return
    if size > memory:
        raise MemtoolError(
            f"{what}: take {size / 2**30:,.1f} GiB, this machine has {memory / 2**30:,.1f}; take "
            "smaller images or fewer of them (--image-size, --samples)"
        )


def resized(images: Images, size: int, advance: Callable[[int], None]) -> Images:
    from PIL import Image

    result = _allocated(len(images), images.shape[1], size, size)
    for index, image in enumerate(images):
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        _place(result, index, np.asarray(_square(picture, size)))
        advance(1)
    return result


def _place(images: Images, index: int, image: Images) -> None:
    """Put one image, (h, w) or (h, w, 3), where it goes; a gray one into all channels."""
    images[index] = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def decoded(paths: list[str], size: int | None, advance: Callable[[int], None]) -> Images:
    """The images in these files: one channel if all are gray, else three.

    Raises MemtoolError if some cannot be read, naming the first of them, or if they differ in size.
    """
    images: Images | None = None
    first = ""
    broken: list[str] = []
    with _strict(), _mapped(partial(_picture, size=size), paths) as pictures:
        for index, (path, picture) in enumerate(zip(paths, pictures, strict=True)):
            if isinstance(picture, str):
                broken.append(f"{path} ({picture})")
            else:
                height, width = picture.shape[:2]
                if images is None:
                    first = path
                    channels = 1 if picture.ndim == 2 else 3
                    images = _allocated(len(paths), channels, height, width)
                elif images.shape[2:] != (height, width):
                    raise MemtoolError(
                        f"{path}: is {width}x{height}, but {first} is "
                        f"{images.shape[3]}x{images.shape[2]}; bring all images to one size "
                        "(--image-size N)"
                    )
                elif picture.ndim == 3 and images.shape[1] == 1:
                    images = images.repeat(3, axis=1)
                _place(images, index, picture)
            if index % CHUNK == CHUNK - 1:
                advance(CHUNK)
    advance(len(paths) % CHUNK)
    if broken or images is None:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise MemtoolError(
            f"{len(broken)} of {len(paths)} images cannot be read: {', '.join(broken[:3])}{more}"
        )
    return images


@contextmanager
def _strict() -> Iterator[None]:
    """Images too large to be true are errors; what else PIL says (of metadata) is no matter."""
    from PIL import Image

    logging.getLogger("PIL").addHandler(logging.NullHandler())  # else stderr gets its errors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def _mapped(
    function: Callable[[str], Images | str], paths: list[str]
) -> Iterator[Iterable[Images | str]]:
    """`function` of each path, in order, in several threads if that is faster.

    PIL lets go of the interpreter while it decodes, but the threads fight for it before and after:
    small images (a few kB) are read faster by one.
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
    """(h, w) if the image is gray, else (h, w, 3); transparency is dropped; or what is wrong."""
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
    """In mode L if it is gray, else RGB."""
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
    """The middle square, its side being the shorter one of the image, resized; antialiased.

    Its outermost pixels take in a little of what is cut off, as if it were cut after resizing.
    """
    from PIL import Image

    if image.size == (size, size):
        return image
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)
