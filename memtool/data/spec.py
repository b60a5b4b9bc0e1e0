"""Data set specs: the text that names a data set, and its options.

A spec is a source and options, as in `folder:photos/?image_size=64&split_at=80%`. Sources:

- `digits`, embedded;
- `cifar10`, `cifar100`, `svhn`, `mnist`, `fashion-mnist`, through torchvision;
- `folder:PATH`: PATH/train/CLASS/* and PATH/test/CLASS/* (or val/ for test/), or PATH/CLASS/*;
- `FILE.npz` or `FILE.safetensors` with the arrays `images` and `labels`, or `train_images`,
  `train_labels`, `test_images` and `test_labels`.

A folder or a file that does not tell training from test images is all test images, unless
`split_at` divides it.
"""

import math
from dataclasses import dataclass
from typing import Any

from memtool import MemtoolError

TORCHVISION = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
}


NAMES = ("digits", *TORCHVISION, "folder:PATH", "FILE.npz", "FILE.safetensors")


@dataclass(frozen=True)
class Options:
    """What may follow the source of a data set, as `?key=value&key=value`."""

    image_size: int | None = None
    """Resize the shorter side to this many pixels, antialiased, and cut out the middle square."""
    split_at: float | None = None
    """How much is for training, the rest being for testing: a part ('80%', 0.8) or a number."""
    samples: int | None = None
    """Take at most this many test images, every class in proportion, and no training images."""
    mean: list[float] | None = None
    """Of each channel, in units of 255, instead of what the training images have."""
    std: list[float] | None = None


def parse(spec: str) -> tuple[str, Options]:
    """`SOURCE?key=value&...` as source and options. Raises MemtoolError."""
    source, pairs = _pairs(spec)
    return source, Options(**{key: _value(spec, key, text) for key, text in pairs.items()})


def with_options(spec: str, **options: object) -> str:
    """`spec` with more options, or with others; those that are None stay as they are."""
    source, pairs = _pairs(spec)
    pairs |= {key: str(value) for key, value in options.items() if value is not None}
    query = "&".join(f"{key}={value}" for key, value in pairs.items())
    return f"{source}?{query}" if query else spec


def _pairs(spec: str) -> tuple[str, dict[str, str]]:
    """The source and the options as typed; the last ? in a path of several begins them."""
    source, mark, query = spec.rpartition("?")
    if not mark:
        return spec, {}
    known = list(Options.__dataclass_fields__)
    pairs = {}
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        if key not in known:
            raise MemtoolError(
                f"data set {spec!r} has no option {key!r} (there are: {', '.join(known)})"
            )
        pairs[key] = value
    return source, pairs


def _value(spec: str, key: str, text: str) -> Any:
    """The value of an option; raises MemtoolError for one out of range."""
    try:
        if key in ("mean", "std"):
            numbers = [float(part) for part in text.split(",")]
            if all(math.isfinite(number) and (key == "mean" or number > 0) for number in numbers):
                return numbers
        elif key == "split_at" and not text.isdecimal():
            part = float(text[:-1]) / 100 if text.endswith("%") else float(text)
            if 0 < part < 1:
                return part
        elif int(text) > 0:
            return int(text)
    except ValueError:
        pass
    wanted = {
        "mean": "numbers, one a channel, separated by commas",
        "std": "positive numbers, one a channel, separated by commas",
        "split_at": "the part or the number of images to train on, such as 80%, 0.8 or 1000",
    }
    raise MemtoolError(
        f"data set {spec!r}: {key} is {wanted.get(key, 'a whole number from 1 on')}, not {text!r}"
    )
