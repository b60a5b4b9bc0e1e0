"""What a data set holds before any image file is read, and the types that this wing shares."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError

Images = NDArray[np.uint8]  # (n, channels, height, width)
Vectors = NDArray[np.float32]  # (n, features), what networks on vectors take for images
Labels = NDArray[np.int64]  # (n,), from 0 on


def told_shape(shape: Sequence[int]) -> str:
    """What images, or vectors, of this shape are called in messages.

    >>> told_shape((3, 32, 32)), told_shape((64,))
    ('images of (channels, height, width) = (3, 32, 32)', 'vectors of 64 features')
    """
    if len(shape) == 1:
        return f"vectors of {shape[0]} features"
    return f"images of (channels, height, width) = {tuple(shape)}"


@dataclass(frozen=True)
class Examples:
    """Examples whose images may still be files.

    Items are images, uint8 (n, channels, height, width), vectors, float32 (n, features), or the
    paths of image files, str in an object array (n,). Where `numbers`, int64 (n,), are known, they
    say where each was among all examples that these were chosen from.
    """

    items: NDArray[Any]
    labels: Labels
    numbers: Labels | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: NDArray[np.bool_] | slice) -> "Examples":
        numbers = None if self.numbers is None else self.numbers[chosen]
        return Examples(self.items[chosen], self.labels[chosen], numbers)

    def numbered(self) -> "Examples":
        """The same examples, all of which there are, with their numbers."""
        return replace(self, numbers=np.arange(len(self)))

    def check(self, spec: str) -> None:
        """Raise MemtoolError, which names `spec`, unless there are as many items as labels: the
        border between the splits would move."""
        if len(self.items) != len(self.labels):
            raise MemtoolError(
                f"{spec}: has {len(self.items)} images, but {len(self.labels)} labels of them"
            )


@dataclass(frozen=True)
class Listing:
    """The classes of a data set and its examples.

    `train` is None for a data set that is not split: all of its examples are in `test`.
    """

    classes: tuple[str, ...]
    train: Examples | None
    test: Examples

    @property
    def count(self) -> int:
        """The number of examples of both splits."""
        return len(self.test) + (0 if self.train is None else len(self.train))

    def numbered(self) -> "Listing":
        """The same listing, of examples with their numbers in their split."""
        train = None if self.train is None else self.train.numbered()
        return replace(self, train=train, test=self.test.numbered())
