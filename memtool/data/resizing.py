"""Pictures of any size become square ones, as memtool, torchvision and timm do it. Pure."""

import math
from typing import TYPE_CHECKING

from memtool import MemtoolError
from memtool.data.spec import Options

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000  # of a picture before it is cropped: a long strip would fill the memory


def fitted(image: "Image.Image", options: Options) -> "Image.Image":
    """The image as `image_size`, `crop_pct`, `crop_mode` and `interpolation` of `options` say.

    With `image_size` alone it is the middle square. With one of the others, pixels are those of
    timm's evaluation transforms, which for `center` are torchvision's Resize and CenterCrop; what
    is not given is 1, `center` and `bilinear`. Raises MemtoolError for a picture far longer than
    wide.
    """
    size = options.image_size
    if size is None:
        return image
    if not options.follows_timm:
        return square(image, size)
    scale = math.floor(size / (options.crop_pct or 1))
    if options.crop_mode == "squash":
        return _cropped(_scaled(image, scale, scale, options), size)
    if options.crop_mode == "border":
        return _bordered(image, size, scale, options)
    return _cropped(_shorter_side(image, scale, options), size)


def square(image: "Image.Image", size: int) -> "Image.Image":
    """The middle square of the image, of the length of its shorter side, resized with antialiasing.

    The outermost pixels take in a little of what is cut off, as if it were cut after resizing.
    """
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def _shorter_side(image: "Image.Image", size: int, options: Options) -> "Image.Image":
    """The image with this many pixels on its shorter side; those of the other are rounded down."""
    width, height = image.size
    if width <= height:
        return _scaled(image, size, int(size * height / width), options)
    return _scaled(image, int(size * width / height), size, options)


def _bordered(image: "Image.Image", size: int, scale: int, options: Options) -> "Image.Image":
    """The image with `scale` pixels on its longer side, on a square of the mean color."""
    fill = [min(max(round(255 * value), 0), 255) for value in options.mean or [0]]
    if len(fill) == 3 and len(image.getbands()) == 1:
        image = image.convert("RGB")
    width, height = image.size
    ratio = max(height / scale, width / scale)
    image = _scaled(image, round(width / ratio), round(height / ratio), options)
    return _cropped(image, size, fill)


def _scaled(image: "Image.Image", width: int, height: int, options: Options) -> "Image.Image":
    from PIL import Image

    if (width, height) == image.size:
        return image
    if width * height > MAX_PIXELS or not width * height:
        raise MemtoolError(
            f"a picture of {image.width}x{image.height} pixels would become one of {width}x{height}"
        )
    method = Image.Resampling[(options.interpolation or "bilinear").upper()]
    return image.resize((width, height), method)


def _cropped(image: "Image.Image", size: int, fill: list[int] | None = None) -> "Image.Image":
    """The middle square of `size` pixels; what the image lacks of it is `fill`, or black."""
    from PIL import Image

    left, right = _missing(size, image.width)
    top, bottom = _missing(size, image.height)
    if left + right + top + bottom:
        bands = len(image.getbands())
        color = tuple(fill * bands)[:bands] if fill else (0,) * bands
        shape = image.width + left + right, image.height + top + bottom
        canvas = Image.new(image.mode, shape, color if bands > 1 else color[0])
        canvas.paste(image, (left, top))
        image = canvas
    # As torchvision rounds: half a pixel goes to the even side.
    x, y = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((x, y, x + size, y + size))


def _missing(size: int, length: int) -> tuple[int, int]:
    """How many pixels a side of `length` lacks, before and after it."""
    lacking = max(size - length, 0)
    return lacking // 2, (lacking + 1) // 2
