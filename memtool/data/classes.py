"""Labels as other people's arrays have them (numbers, names, one-hot rows), and their classes."""

import logging
import re
from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.data.listing import Labels
from memtool.errors import some

Values = NDArray[Any]  # one label per example as it is called, int64 or str (or objects), (n,)
DECIMAL = re.compile(r"-?\d+\.\d*([eE][+-]?\d{1,2})?")  # so some write whole numbers, too
NUMBER = re.compile(rf"-?\d+|{DECIMAL.pattern}")
MAX_CLASSES = 100_000  # more are a mistake: row numbers, or what a regression predicts

logger = logging.getLogger("memtool")


def values(labels: NDArray[Any], what: str) -> Values:
    """Labels of any kind as one value per example, int64 or str (n,).

    They are whole numbers of any type or names, (n,), (n, 1) or, as MATLAB has them, (1, n); or
    one-hot, (n, classes), which a note tells. Objects are names, and remain objects. Raises
    MemtoolError, which calls them `what`, for anything else.

    >>> values(np.array([[1.0], [5.0]]), "labels"), values(np.array(["bee ", "ant"]), "labels")
    (array([1, 5]), array(['bee', 'ant'], dtype='<U3'))
    """
    if labels.ndim == 2 and min(labels.shape) > 1 and labels.dtype.kind in "buif":
        return _hot_columns(labels, what)
    if labels.shape not in ((labels.size,), (labels.size, 1), (1, labels.size)):
        raise MemtoolError(f"{what} are {labels.dtype} {labels.shape}, not one per example (n,)")
    flat = labels.reshape(-1)
    if flat.dtype.kind in "USO":
        return _names(flat, what)
    if flat.dtype.kind not in "buif" or not _are_whole(flat):
        raise MemtoolError(f"{what} are {labels.dtype} {labels.shape}, not whole numbers or names")
    return flat.astype(np.int64)


def _are_whole(numbers: NDArray[Any]) -> bool:
    """Whether all are whole numbers that int64 holds."""
    with np.errstate(invalid="ignore"):
        if numbers.dtype.kind == "f" and not (numbers == np.rint(numbers)).all():
            return False
    return not numbers.size or -(2.0**63) <= float(numbers.min()) <= float(numbers.max()) < 2.0**63


def _names(labels: NDArray[Any], what: str) -> Values:
    try:
        texts = (name.decode() if isinstance(name, bytes) else name for name in labels.tolist())
        names = np.array(
            [name.strip() for name in texts], object if labels.dtype == object else str
        )
    except UnicodeDecodeError as error:
        raise MemtoolError(f"{what} are bytes, but not UTF-8 ({error})") from error
    if (empty := np.flatnonzero(names == "")).size:
        raise MemtoolError(f"{what}: that in row {empty[0]} (from 0) is empty")
    return names


def _hot_columns(labels: NDArray[Any], what: str) -> Values:
    """The column of the one 1 in each row, int64 (n,)."""
    if ((labels != 0) & (labels != 1)).any():
        raise MemtoolError(
            f"{what} {labels.shape} are neither one per example nor one-hot (a 1 in each row, else "
            "0); of soft labels, save the most likely ones, labels.argmax(1)"
        )
    ones = np.count_nonzero(labels, axis=1)
    if (wrong := np.flatnonzero(ones != 1)).size:
        raise MemtoolError(
            f"{what} {labels.shape} are not one-hot: row {wrong[0]} has {ones[wrong[0]]} ones; one "
            "class per example is needed"
        )
    logger.info(f"{what} {labels.shape} are one-hot; the column of the 1 is the class")
    columns: Labels = labels.argmax(axis=1).astype(np.int64)
    return columns


def classes_of(parts: Sequence[Values], what: str) -> tuple[tuple[str, ...], list[Labels]]:
    """The names of the classes that occur in the parts of a data set, sorted, and the labels of
    each part, int64 (n,) from 0 on.

    Whole numbers are sorted as such, also where they are text. A note tells of numbers that do not
    count from 0. Raises MemtoolError, which calls the labels `what`, for absurdly many classes, for
    numbers beside names, for negative numbers that are not the -1 and 1 of two classes, and for
    names that look alike.

    >>> classes_of([np.array([5, 1, 5]), np.array([10])], "labels")
    (('1', '5', '10'), [array([1, 0, 1]), array([2])])
    """
    if len({part.dtype.kind for part in parts}) > 1:
        raise MemtoolError(f"{what} are numbers in one part and names in another")
    found, inverse = np.unique(np.concatenate(parts), return_inverse=True)
    if len(found) > MAX_CLASSES:
        raise MemtoolError(f"{what} have {len(found)} different values, too many for classes")
    if found.dtype.kind == "i":
        _check_numbers(found, what)
    names = found.astype(str).tolist()
    check_spelling(names, what)
    are_numbers = all(map(is_number, names))
    order = np.argsort([int(name) for name in names]) if are_numbers else range(len(names))
    ranks = np.argsort(order)
    labels = ranks[inverse.reshape(-1)].astype(np.int64)
    borders = np.cumsum([len(part) for part in parts])[:-1]
    return tuple(names[index] for index in order), np.split(labels, borders)


def plain(cell: str) -> str:
    """A whole number that is written with zeros before it, or a fraction of zeros, as its digits
    alone; other text as it is.

    >>> plain("3.0"), plain("1.000e+01"), plain("03"), plain("3.5"), plain("v1.0")
    ('3', '10', '3', '3.5', 'v1.0')
    """
    if is_number(cell):
        return str(int(cell))
    if DECIMAL.fullmatch(cell) and (number := float(cell)).is_integer():
        return str(int(number))
    return cell


def composed(name: str) -> str:
    """A name with every accent in one character with its letter (Unicode's NFC): files written on
    macOS may have them apart (NFD), which looks the same.

    >>> len("cafe\\u0301"), len(composed("cafe\\u0301"))
    (5, 4)
    """
    return normalize("NFC", name)


def check_spelling(names: Sequence[str], what: str) -> None:
    """Raise MemtoolError, which calls them `what`, if names of classes differ in nothing but how
    their accents are encoded."""
    alike: dict[str, str] = {}
    for name in names:
        if alike.setdefault(composed(name), name) != name:
            raise MemtoolError(
                f"{what}: {composed(name)!r} is there in two encodings of its accents (NFC and "
                "NFD), which would be two classes; write it in one (unicodedata.normalize)"
            )


def is_number(name: str) -> bool:
    """Whether it is a number that an int64 holds: the digits of others are a name.

    >>> is_number("007"), is_number("7a"), is_number("1" * 5000)
    (True, False, False)
    """
    return name.isdecimal() and name.isascii() and len(name) < 19


def _check_numbers(found: NDArray[np.int64], what: str) -> None:
    if found[0] < 0 and found.tolist() != [-1, 1]:
        raise MemtoolError(
            f"{what} go from {found[0]} to {found[-1]}; classes are not negative (if {found[0]} "
            "means unlabelled, leave those examples out)"
        )
    if found[-1] != len(found) - 1:
        shown = some(found.astype(str).tolist(), 5)
        logger.info(f"{what} are {shown}: {len(found)} classes, of which these are the names")
