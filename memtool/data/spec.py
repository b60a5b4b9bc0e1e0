"""Data set specs: the text that names a data set, and its options.

A spec is a source and options, as in `folder:photos/?image_size=64&split_at=80%`. Sources:

- `digits`, which comes with memtool;
- `cifar10`, `cifar100`, `svhn`, `mnist` and `fashion-mnist`, through torchvision;
- `folder:PATH` with PATH/train/CLASS/* and PATH/test/CLASS/* (or val/ for test/), or PATH/CLASS/*;
- `FILE.npz` or `FILE.safetensors` with the arrays `images` and `labels`, or `train_images`,
  `train_labels`, `test_images` and `test_labels`.

A folder or a file that does not tell training images from test images holds test images only,
unless `split_at` divides it.
"""

import math
from dataclasses import dataclass
from typing import Any

from memtool import MemtoolError, specs

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


@dataclass(frozen=True)
class Options:
    """What may follow the source of a data set, as `?key=value&key=value`; None where it does not.

    `mean` and `std` hold one number per channel.
    """

    image_size: int | None = None
    """Resize each image to this many pixels on its shorter side, and crop the middle square."""
    split_at: float | None = None
    """How many images are for training: a fraction in (0, 1), or a whole number of images."""
    samples: int | None = None
    """Take at most this many test images, each class in proportion, and no training images."""
    mean: list[float] | None = None
    """Normalize with this mean, in units of 255, instead of that of the training images."""
    std: list[float] | None = None
    """Normalize with this standard deviation, in units of 255 and positive, likewise."""


def parse(spec: str) -> tuple[str, Options]:
    """The source in a data set spec and its options.

    Raises MemtoolError for an option that does not exist or has a value out of range.

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
    return source, Options(**{key: _value(spec, key, text) for key, text in texts.items()})


def with_options(spec: str, **options: object) -> str:
    """`spec` with options added or replaced, except those that are None.

    The rest stays as it was typed, since the result is what files record as the data set's name.

    >>> with_options("folder:photos?split_at=80%", image_size=64, samples=None)
    'folder:photos?split_at=80%&image_size=64'
    """
    source, texts = specs.split(spec, "data set")
    texts |= {key: str(value) for key, value in options.items() if value is not None}
    return specs.join(source, texts) if texts else spec


def _value(spec: str, key: str, text: str) -> Any:
    """The value of an option; raises MemtoolError if it is out of range."""
    try:
        if key in ("mean", "std"):
            numbers = [float(part) for part in text.split(",")]
            if all(math.isfinite(number) and (key == "mean" or number > 0) for number in numbers):
                return numbers
        elif key == "split_at" and not text.isdecimal():
            fraction = float(text[:-1]) / 100 if text.endswith("%") else float(text)
            if 0 < fraction < 1:
                return fraction
        elif int(text) > 0:
            return int(text)
    except ValueError:
        pass
    wanted = {
        "mean": "one number per channel, separated by commas",
        "std": "one positive number per channel, separated by commas",
        "split_at": "the part or the number of images to train on, such as 80%, 0.8 or 1000",
    }
    raise MemtoolError(
        f"data set {spec!r}: {key} is {wanted.get(key, 'a whole number from 1 on')}, not {text!r}"
    )
