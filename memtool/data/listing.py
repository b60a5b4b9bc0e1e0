"""What a data set holds before any image file is read, and the types that this wing shares."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]  # (n, channels, height, width)
Labels = NDArray[np.int64]  # (n,), from 0 on


@dataclass(frozen=True)
class Listing:
    """The classes of a data set and its examples, whose images may still be files.

    `train` and `test` are pairs of items and labels of equal length. Items are images, uint8
    (n, channels, height, width), or the paths of image files, str in an object array (n,). `train`
    is None for a data set that is not split: all of its examples are in `test`.
    """

    classes: tuple[str, ...]
    train: tuple[NDArray[Any], Labels] | None
    test: tuple[NDArray[Any], Labels]
