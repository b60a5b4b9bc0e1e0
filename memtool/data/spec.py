"""Data set specs: the text that names a data set, and its options.

A spec is a source and options, as in `folder:photos/?image_size=64&split_at=80%`. Sources:

- `digits`, which comes with memtool;
- `cifar10`, `cifar100`, `svhn`, `mnist` and `fashion-mnist`, through torchvision;
- `folder:PATH` with PATH/train/CLASS/** and PATH/test/CLASS/** (or val/ for test/), or with
  PATH/CLASS/**, where ** are image files and folders of them; or Tiny ImageNet as it is;
- `FILE.npz` or `FILE.safetensors` with the arrays `images` and `labels`, or `train_images`,
  `train_labels`, `test_images` and `test_labels` (or `val_` for `test_`); `features` for `images`
  where they are vectors.

A folder or a file that does not tell training images from test images holds test images only,
unless `split_at` divides it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from memtool import MemtoolError, specs
from memtool.metadata import MAX_IMAGE

# Names of torchvision's data sets, and the classes that read them.
TORCHVISION = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
}

# Every source there is, as help texts and error messages list them.
NAMES = ("digits", *TORCHVISION, "folder:PATH", "FILE.npz", "FILE.safetensors")

# The options that say how images get their `image_size`, and what two of them may be.
RESIZING = ("crop_pct", "crop_mode", "interpolation")
CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


@dataclass(frozen=True)
class Options:
    """What may follow the source of a data set, as `?key=value&key=value`; None where it does not.

    `mean` and `std` hold one number per channel, or per feature of vectors, in their own units.
    """

    image_size: int | None = None
    """Resize each image to this many pixels on its shorter side, and crop the middle square."""
    crop_pct: float | None = None
    """Resize to `image_size` divided by this, then crop; as timm does, as with the two below."""
    crop_mode: str | None = None
    """What is resized: the shorter side (`center`), both sides, out of proportion (`squash`), or
    the longer side, the rest being of the color `mean` (`border`)."""
    interpolation: str | None = None
    """How it is resized: by one of PIL's filters."""
    split_at: float | None = None
    """How many images are for training: a fraction in (0, 1), or a whole number of images."""
    channels: int | None = None
    """Make images gray (1), or repeat the channel of gray ones (3)."""
    orient: bool | None = None
    """Turn image files upright that have an EXIF orientation."""
    bits: int | None = None
    """How many bits the values in image files of more than 8 bits have; by default, as many as the
    largest value in all of them needs. Where some are left out (`samples`), it has to be said,
    unless a checkpoint has it on record."""
    samples: int | None = None
    """Take at most this many test images, each class in proportion, and no training images."""
    samples_train: int | None = None
    """Take at most this many training images, each class in proportion."""
    mean: list[float] | None = None
    """Normalize with this mean, in units of 255, instead of that of the training images."""
    std: list[float] | None = None
    """Normalize with this standard deviation, in units of 255 and positive, likewise."""

    @property
    def follows_timm(self) -> bool:
        """Whether images are resized as timm does it, not to the middle square alone."""
        return any(getattr(self, name) is not None for name in RESIZING)

    @property
    def preparation(self) -> dict[str, Any]:
        """What decides the pixels of images whose size is known, by name: what is not given as
        `resizing.fitted` takes it, and None for what does not apply."""
        resizing: dict[str, Any] = dict.fromkeys(RESIZING)
        if self.follows_timm:
            resizing["crop_pct"] = self.crop_pct or 1.0
            resizing["crop_mode"] = self.crop_mode or "center"
            resizing["interpolation"] = self.interpolation or "bilinear"
        color = self.mean if self.crop_mode == "border" else None
        return {**resizing, "mean": color, "orient": self.orient or None}

    @property
    def is_part(self) -> bool:
        """Whether only some of the images there are may be taken."""
        return self.samples is not None or self.samples_train is not None


def parse(spec: str) -> tuple[str, Options]:
    """The source in a data set spec and its options.

    Raises MemtoolError for an option that does not exist, has a value out of range, or makes no
    sense without another.

    >>> source, options = parse("folder:photos?image_size=64&split_at=80%")
    >>> source, options.image_size, options.split_at
    ('folder:photos', 64, 0.8)
    """
    source, texts = specs.parse(spec, "data set")
    known = list(Options.__dataclass_fields__)
    for key in texts:
        if key not in known:
            raise MemtoolError(
                f"data set {spec!r} has no option {key!r} (there are: {', '.join(known)})"
            )
    options = Options(**{key: _value(spec, key, text) for key, text in texts.items()})
    if wanting := _wanting(options):
        raise MemtoolError(f"data set {spec!r}: {wanting}")
    return source, options


def _wanting(options: Options) -> str | None:
    """What is to be said of an option that makes no sense without another one."""
    for name in RESIZING:
        if options.image_size is None and getattr(options, name) is not None:
            return f"{name} is for resizing; say to what size (image_size=224)"
    if (options.image_size or 1) < (options.crop_pct or 1):
        return f"image_size={options.image_size} divided by crop_pct={options.crop_pct} is no pixel"
    if options.crop_mode == "border" and options.mean is None:
        return (
            "crop_mode=border makes a border of the color mean; say what that is (mean=0.5), in "
            "color for each channel (mean=0.5,0.5,0.5)"
        )
    return None


def with_options(spec: str, **options: object) -> str:
    """`spec` with options added or replaced, except those that are None.

    The rest stays as it was typed, since the result is what files record as the data set's name.

    >>> with_options("folder:photos?split_at=80%", image_size=64, samples=None)
    'folder:photos?split_at=80%&image_size=64'
    """
    source, texts = specs.split(spec, "data set")
    texts |= {key: _text(value) for key, value in options.items() if value is not None}
    return specs.join(source, texts) if texts else spec


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def same_images(one: str, other: str) -> bool:
    """Whether two specs name the same images, of which either may take a sample.

    >>> same_images("folder:photos?orient=true", "folder:./photos?orient=true&samples=100")
    True
    """
    return specs.same(_of_all(one), _of_all(other), "data set")


def _of_all(spec: str) -> str:
    """`spec` without what takes a sample, and without the `bits` that only a sample has to say."""
    source, texts = specs.split(spec, "data set")
    kept = {key: text for key, text in texts.items() if key not in ("samples", "bits")}
    return specs.join(source, kept)


def with_defaults(spec: str, **options: object) -> str:
    """`spec` with those options added that it does not have.

    >>> with_defaults("folder:photos?image_size=64", image_size=224, crop_pct=0.875)
    'folder:photos?image_size=64&crop_pct=0.875'
    """
    _, texts = specs.parse(spec, "data set")
    return with_options(spec, **{key: its for key, its in options.items() if key not in texts})


def option_value(key: str, text: str) -> Any:
    """The value of an option, read from a text; None if it is out of range.

    >>> option_value("crop_pct", "87.5%"), option_value("crop_mode", "middle")
    (0.875, None)
    """
    with suppress(ValueError):
        return VALUES.get(key, WHOLE)[1](text)
    return None


def _value(spec: str, key: str, text: str) -> Any:
    """The value of an option; raises MemtoolError if it is out of range."""
    if (value := option_value(key, text)) is None:
        wanted, _ = VALUES.get(key, WHOLE)
        raise MemtoolError(f"data set {spec!r}: {key} is {wanted}, not {text!r}")
    return value


def _numbers(text: str, positive: bool = False) -> list[float] | None:
    numbers = [float(part) for part in text.split(",")]
    sensible = all(math.isfinite(number) and (number > 0 or not positive) for number in numbers)
    return numbers if sensible else None


def _part(text: str) -> float | int | None:
    """A fraction in (0, 1), or a whole number from 1 on."""
    if text.isdecimal():
        return int(text) or None
    part = specs.fraction(text)
    return part if 0 < part < 1 else None


def _among(names: Sequence[str]) -> Callable[[str], str | None]:
    return lambda text: text if text in names else None


def _whole(text: str, least: int = 1, most: float = math.inf) -> int | None:
    return number if least <= (number := int(text)) <= most else None


def _share(text: str) -> float | None:
    """A number in [0.1, 2]; timm has models with more than 1, whose images get a black border."""
    share = specs.fraction(text)
    return share if 0.1 <= share <= 2 else None


# What each option takes, in words and as a function that gives None or raises ValueError for
# anything else.
WHOLE = ("a whole number from 1 on", _whole)
VALUES: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "image_size": (f"a whole number from 1 to {MAX_IMAGE}", partial(_whole, most=MAX_IMAGE)),
    "mean": ("one number per channel, separated by commas", _numbers),
    "std": (
        "one positive number per channel, separated by commas",
        partial(_numbers, positive=True),
    ),
    "split_at": ("the part or the number of images to train on, such as 80%, 0.8 or 1000", _part),
    "crop_pct": ("a number from 0.1 to 2, such as 0.875", _share),
    "crop_mode": (", ".join(CROP_MODES), _among(CROP_MODES)),
    "interpolation": (", ".join(INTERPOLATIONS), _among(INTERPOLATIONS)),
    "channels": ("1 or 3", {"1": 1, "3": 3}.get),
    "orient": ("true or false", {"true": True, "false": False}.get),
    "bits": ("a whole number from 8 to 16", partial(_whole, least=8, most=16)),
}
