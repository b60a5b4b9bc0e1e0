"""Picture files: one file becomes an array of pixels, with remarks on what had to be decided."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memtool.data.resizing import fitted
from memtool.data.spec import Options
from memtool.errors import last_line

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
# What a file may be, whatever its suffix. Not all that Pillow knows: EPS would start Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "PPM", "TIFF", "WEBP")
# Pixels, each of which may take some 20 bytes while it is decoded: several threads with larger
# pictures would take many GB. One thread decodes all of these: each keeps what it has once taken.
LARGE = 2**24
_for_large = ThreadPoolExecutor(1)
ORIENTATION = 0x0112  # the EXIF tag
# Makes upright an image that has this EXIF orientation, by the names of PIL's transpositions.
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class Remark(StrEnum):
    """What is told of the images that it is true of."""

    oriented = (
        "have an EXIF orientation, which is ignored, as torchvision's and timm's loaders do; "
        "orient=true turns them upright"
    )
    transparent = "have transparent pixels, and are shown on white"
    cmyk = "are CMYK, and converted to RGB without a color profile"
    frames = "have several frames, of which the first is taken"
    high_bytes = "are TIFF with 16 bits per color, of which the upper 8 are read"


class Picture(NamedTuple):
    """The pixels of one file, (h, w) if it is gray, else (h, w, 3).

    They are uint8 or, if the file has more than 8 bits per value, uint16 in the units of the file;
    `peak` is then the largest value in it, before any resizing, or that which it may have.
    """

    pixels: NDArray[Any]
    remarks: frozenset[Remark]
    peak: int | None = None


def read(path: str, options: Options) -> Picture | str:
    """One image, or, as text, why it cannot be read.

    It is resized as by `fitted`; with `orient`, its EXIF orientation is applied.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a named pipe would wait forever
            return "not a regular file"
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > LARGE:
                return _for_large.submit(_picture, image, path, options).result()
            return _picture(image, path, options)
    except UnidentifiedImageError:
        return f"not one of {', '.join(FORMATS)}"
    except OSError as error:
        return error.strerror or last_line(error)
    except Exception as error:  # broken files make PIL raise nearly anything
        return last_line(error)


def _picture(image: "Image.Image", path: str, options: Options) -> Picture:
    remarks = set()
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a phone's JPEG
        remarks.add(Remark.frames)
    raw, scaled = _raw_mode(image), _is_scaled(image)
    image.load()
    orientation = image.getexif().get(ORIENTATION, 1)
    if orientation in UPRIGHT and not options.orient:
        remarks.add(Remark.oriented)
    deep = _deep(image, raw, path, remarks)
    if deep is None:
        bands = [_eight_bits(image, remarks)]
    else:
        if options.crop_mode == "border":
            raise ValueError("has more than 8 bits per value, and no border is made for such")
        bands = _bands(deep)
    if options.orient and orientation in UPRIGHT:
        bands = [_upright(band, orientation) for band in bands]
    bands = [fitted(band, options) for band in bands]
    arrays = [np.asarray(band) for band in bands]
    pixels = arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=-1)
    if deep is None:
        return Picture(pixels, frozenset(remarks))
    peak = 65535 if scaled else int(deep.max())
    # A bicubic curve leaves the range of the values that it goes through.
    return Picture(np.rint(pixels).clip(0, 65535).astype(np.uint16), frozenset(remarks), peak)


def _raw_mode(image: "Image.Image") -> str:
    """How the pixels lie in the file, as in 'RGB;16B', where Pillow says so."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else None
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _is_scaled(image: "Image.Image") -> bool:
    """Whether PIL brings values to 0..65535: it does where a PGM file says what their range is."""
    return image.format == "PPM" and any(tile[0] != "raw" for tile in getattr(image, "tile", ()))


def _deep(
    image: "Image.Image", raw: str, path: str, remarks: set[Remark]
) -> NDArray[np.uint16] | None:
    """The pixels of an image with more than 8 bits per value, (h, w) or (h, w, 3); None for any
    other. Raises ValueError for one that cannot be read."""
    if image.mode == "F":
        raise ValueError("its pixels are floats")
    if image.mode.startswith("I"):
        return _deep_gray(image)
    if ";16" not in raw or image.mode not in ("L", "LA", "RGB", "RGBA"):
        return None
    if image.format == "PNG":
        return _deep_png(path, image.info.get("transparency"))
    if image.mode in ("LA", "RGBA") and _lowest_alpha(image) < 255:
        raise ValueError("has transparent pixels and 16 bits per color")
    remarks.add(Remark.high_bytes)
    return np.asarray(image.convert("RGB")).astype(np.uint16) * 257


def _deep_gray(image: "Image.Image") -> NDArray[np.uint16]:
    """Gray values of 16 bits, which PIL sometimes keeps in 32."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have more than 16 bits")
    if getattr(image, "tag_v2", {}).get(262) == 0:  # PhotometricInterpretation
        raise ValueError("its gray values of 16 bits count from white")
    key = image.info.get("transparency")
    if isinstance(key, int) and (values == key).any():
        raise ValueError("has transparent pixels and 16 bits per value")
    return values.astype(np.uint16)


def _deep_png(path: str, key: Any) -> NDArray[np.uint16]:
    """The pixels of a PNG file with 16 bits per color, of which PIL gives the upper 8 alone; pixels
    of the color `key`, if that is one, are transparent."""
    import torch
    from torchvision.io import ImageReadMode, decode_image

    content = torch.from_numpy(np.fromfile(path, dtype=np.uint8))
    values: NDArray[np.uint16] = decode_image(content, ImageReadMode.UNCHANGED).numpy()
    is_clear = np.zeros(values.shape[1:], bool)
    if len(values) in (2, 4):
        *_, alpha = values
        is_clear, values = alpha < 65535, values[:-1]
    elif isinstance(key, tuple) and len(key) == len(values):
        is_clear = (values == np.array(key)[:, None, None]).all(0)
    if is_clear.any():
        raise ValueError("has transparent pixels and 16 bits per color")
    return values[0] if len(values) == 1 else values.transpose(1, 2, 0)


def _bands(values: NDArray[np.uint16]) -> list["Image.Image"]:
    """An image of floats for each channel of an array, (h, w) or (h, w, c)."""
    from PIL import Image

    channels = np.atleast_3d(values).astype(np.float32).transpose(2, 0, 1)
    return [Image.fromarray(np.ascontiguousarray(channel)) for channel in channels]


def _eight_bits(image: "Image.Image", remarks: set[Remark]) -> "Image.Image":
    """The image in mode L if it is gray, else in mode RGB; transparent pixels on white."""
    from PIL import Image

    mode = "L" if image.mode in ("L", "1", "LA", "La") else "RGB"
    if not image.has_transparency_data:
        if image.mode == "CMYK":
            remarks.add(Remark.cmyk)
        return image if image.mode == mode else image.convert(mode)
    image = image.convert("LA") if image.mode == "La" else image
    image = image.convert("RGBA")
    if _lowest_alpha(image) < 255:
        remarks.add(Remark.transparent)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _lowest_alpha(image: "Image.Image") -> float:
    lowest, _ = image.getchannel("A").getextrema()
    assert isinstance(lowest, int | float)
    return lowest


def _upright(image: "Image.Image", orientation: int) -> "Image.Image":
    from PIL import Image

    return image.transpose(Image.Transpose[UPRIGHT[orientation]])
