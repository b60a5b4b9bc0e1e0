"""Arrays of images and labels in `.npz` and `.safetensors` files.

They are named `images` and `labels` or, if the data set is split, `train_images`, `train_labels`,
`test_images` and `test_labels` (or `val_` for `test_`). Images are (n, c, h, w), (n, h, w, c) or
(n, h, w), with c = 1 or 3; uint8, or whole numbers in 0..255, or floats in [0, 1]. Where they are
(n, d), or are called `features`, they are vectors for networks on vectors, of any numbers. Labels
are whole numbers, names or one-hot; the classes are those that occur.
"""

import logging
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.contents import check_regular, check_unpacked, described
from memtool.data.classes import classes_of, values
from memtool.data.folders import TESTS
from memtool.data.images import check_memory
from memtool.data.listing import Examples, Images, Listing, Vectors
from memtool.errors import last_line, some
from memtool.metadata import MAX_FEATURES

SUFFIXES = {".npz", ".safetensors"}
KEYS = ("images", "features", "labels")
# The types of tensors, as safetensors calls them, that become arrays.
OF_NUMPY = {"BOOL", "F16", "F32", "F64", "C64", *(f"{s}{b}" for s in "IU" for b in (8, 16, 32, 64))}
PART = 2**18  # values
# The largest part of a feature's standard deviation by which float32 may change its values.
ROUNDING = 1e-3

logger = logging.getLogger("memtool")


def listed(path: Path, memory: int) -> Listing:
    """The images and labels in a file, whose arrays may take `memory` bytes.

    Raises MemtoolError for arrays that are missing, malformed or ambiguous, and, before any is
    read, for more than that.
    """
    read = _read_npz if path.suffix.lower() == ".npz" else _read_safetensors
    arrays = read(path, memory)
    name, prefixes = _names(arrays, path)
    items = _items({f"{prefix}{name}": arrays[f"{prefix}{name}"] for prefix in prefixes}, path)
    labels = [values(arrays[f"{prefix}labels"], f"{path}: {prefix}labels") for prefix in prefixes]
    for prefix, own, its in zip(prefixes, items, labels, strict=True):
        if len(own) != len(its) or not own.size:
            raise MemtoolError(f"{path}: {len(own)} {prefix}{name}, {len(its)} {prefix}labels")
    if items[0].shape[1:] != items[-1].shape[1:]:
        raise MemtoolError(
            f"{path}: training {name} are {items[0].shape[1:]}, test {name} {items[-1].shape[1:]}"
        )
    classes, numbers = classes_of(labels, f"{path}: labels")
    *train, test = (Examples(*pair) for pair in zip(items, numbers, strict=True))
    return Listing(classes, train[0] if train else None, test)


def _names(arrays: Mapping[str, NDArray[Any]], path: Path) -> tuple[str, tuple[str, ...]]:
    """What the examples are called, and what the names of the arrays of each split begin with; the
    test split comes last. A note tells of other arrays that could have been meant."""
    for prefixes in (*(("train_", f"{test}_") for test in TESTS), ("",)):
        for name in ("images", "features"):
            keys = [f"{prefix}{key}" for prefix in prefixes for key in (name, "labels")]
            if all(key in arrays for key in keys):
                if others := [key for key in arrays if key not in keys]:
                    logger.info(f"{path}: skipped {some(others)}; took {', '.join(keys)}")
                return name, prefixes
    raise MemtoolError(
        f"{path}: needs images and labels, or train_images, train_labels, test_images and "
        f"test_labels, or features for images (it has: {', '.join(arrays) or 'none of them'})"
    )


def _items(arrays: Mapping[str, NDArray[Any]], path: Path) -> list[NDArray[Any]]:
    """The images, or vectors, of each split."""
    if any(name.endswith("features") or array.ndim == 2 for name, array in arrays.items()):
        return [_vectors(array, f"{path}: {name}") for name, array in arrays.items()]
    return [nchw(array, f"{path}: {name}") for name, array in _bytes(arrays, path).items()]


def _vectors(array: NDArray[Any], what: str) -> Vectors:
    """Numbers of any type, (n, d), as float32.

    Raises MemtoolError for another shape and for what is not finite; warns if float32 rounds a
    feature by more than a small part of its standard deviation.
    """
    if array.ndim != 2 or not array.shape[1] or array.dtype.kind not in "buif":
        raise MemtoolError(f"{what} is {array.dtype} {array.shape}, not vectors of numbers (n, d)")
    if array.shape[1] > MAX_FEATURES:
        raise MemtoolError(f"{what} has {array.shape[1]} features, more than {MAX_FEATURES}")
    with np.errstate(over="ignore"):
        vectors: Vectors = np.ascontiguousarray(array, dtype=np.float32)
    if (bad := np.argwhere(~np.isfinite(vectors))).size:
        row, column = bad[0]
        raise MemtoolError(
            f"{what}: feature {column} of example {row} is {array[row, column]:g}, not a number "
            "that float32 holds; leave out such examples or fill the gap"
        )
    if array.dtype.kind in "uif" and array.dtype.itemsize > 2 and array.dtype != np.float32:
        _warn_of_rounding(array, vectors, what)
    return vectors


def _warn_of_rounding(array: NDArray[Any], vectors: Vectors, what: str) -> None:
    for column in range(array.shape[1]):
        exact = array[:, column].astype(np.float64)
        if exact.min() == exact.max():
            continue
        spread = exact.std()
        if abs(vectors[:, column] - exact).max() > ROUNDING * spread:
            logger.warning(
                f"{what}: float32 rounds feature {column} by more than {ROUNDING:g} of its "
                "standard deviation; subtract its mean before you save it"
            )
            return


def _read_safetensors(path: Path, memory: int) -> dict[str, NDArray[Any]]:
    # Not by `tensors.opened`, whose errors are about checkpoints: there, a pickle can be converted.
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if name.endswith(KEYS)]  # noqa: SIM118
            for name in names:
                if (type_ := file.get_slice(name).get_dtype()) not in OF_NUMPY:
                    raise MemtoolError(
                        f"{path}: {name} is of type {type_}, which NumPy does not have; save it as "
                        "float32 or uint8"
                    )
            check_memory(sum(_size(file.get_slice(name)) for name in names), str(path), memory)
            return {name: file.get_tensor(name) for name in names}
    except FileNotFoundError as error:
        raise MemtoolError(f"{path}: no such file") from error
    except (OSError, SafetensorError, TypeError, ValueError, MemoryError) as error:
        raise _something_else(path, error) from error


def _something_else(path: Path, error: Exception) -> MemtoolError:
    """The error for a file that is not what its name says, by what it is, where that is known."""
    told = described(path, weights=False) or last_line(error)
    return MemtoolError(f"{path}: cannot be read ({told})")


def _size(stored: Any) -> int:
    """The bytes of a tensor that a header describes; its type is called F32, I64, BOOL, ..."""
    bits = re.match(r"[A-Z]+(\d+)", stored.get_dtype())
    shape: list[int] = stored.get_shape()
    return math.prod(shape) * (int(bits[1]) if bits else 8) // 8


def _read_npz(path: Path, memory: int) -> dict[str, NDArray[Any]]:
    """The arrays whose names end in images or labels. Arrays of objects, which would run code when
    they are read, are refused."""
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            check_unpacked(archive, path.stat().st_size)
            members = {
                name: member
                for member in archive.infolist()
                if (name := member.filename.removesuffix(".npy")).endswith(KEYS)
            }
            check_memory(sum(part.file_size for part in members.values()), str(path), memory)
            return {name: _read_npy(archive, member) for name, member in members.items()}
    except FileNotFoundError as error:
        raise MemtoolError(f"{path}: no such file") from error
    except MemtoolError:
        raise
    except zipfile.BadZipFile as error:
        raise _something_else(path, error) from error
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds for broken files
        raise MemtoolError(f"{path}: cannot be read ({last_line(error)})") from error


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """One array, not read beyond the size that the archive states, whatever its header claims."""
    with archive.open(member) as stream:
        array: NDArray[Any] = read_array(stream)
    return array


def read_array(stream: IO[bytes]) -> NDArray[Any]:
    """An array in NumPy's format; ValueError for one of objects, which would run code."""
    try:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(
            "it is an array of Python objects, which is never opened; save text as "
            "array.astype(str), numbers as array.astype(int)"
        ) from error
    return array


def _bytes(arrays: Mapping[str, NDArray[Any]], path: Path) -> dict[str, Images]:
    """The images of all splits as uint8: whole numbers in 0..255 as they are, floats in [0, 1] and
    truth values times 255.

    Raises MemtoolError for other values, and where one split ends at 1 and another does not."""
    for name, array in arrays.items():
        _check_range(array, f"{path}: {name}")
    of_truth = {name for name, array in arrays.items() if array.dtype == np.bool_}
    highest = {
        name: 255 if name in of_truth else array.max(initial=0) for name, array in arrays.items()
    }
    numbers = {name: array for name, array in arrays.items() if name not in of_truth}
    if all(array.dtype.kind == "f" and highest[name] <= 1 for name, array in numbers.items()):
        return {name: _rounded(array, scale=255) for name, array in arrays.items()}
    above = max(highest, key=lambda name: float(highest[name]))
    for name, array in numbers.items():
        is_whole = array.dtype.kind != "f" or all(
            (array[part] == np.rint(array[part])).all() for part in _parts(array)
        )
        if not is_whole or highest[name] == 1 < highest[above]:
            told = "only values of 0 and 1" if is_whole else "fractions"
            most = "truth values" if above in of_truth else f"values up to {highest[above]:g}"
            raise MemtoolError(
                f"{path}: {name} has {told}, and {above} {most}; save all as uint8 in 0..255, or "
                "as floats in [0, 1]"
            )
    return {name: _rounded(array, 255 if name in of_truth else 1) for name, array in arrays.items()}


def _rounded(array: NDArray[Any], scale: int = 1) -> Images:
    """The values times `scale` as uint8; values that are so already are not copied.

    One part of the examples is computed after the other: copies of all would take several times
    the memory of what is read. The product is of float32 or wider: in float16 it would be rounded
    itself, now and then across the middle of two levels."""
    if array.dtype == np.uint8 and scale == 1:
        return array
    result = np.empty(array.shape, np.uint8)
    type_ = np.result_type(array.dtype, np.float32)
    for part in _parts(array):
        result[part] = np.rint(np.multiply(array[part], scale, dtype=type_))
    return result


def _parts(array: NDArray[Any]) -> list[slice]:
    """The examples in parts of a megabyte or two."""
    step = max(1, PART // max(1, math.prod(array.shape[1:])))
    return [slice(start, start + step) for start in range(0, len(array), step)]


def _check_range(array: NDArray[Any], what: str) -> None:
    """Raise MemtoolError unless all values are numbers in 0..255."""
    if array.dtype.kind not in "buif":
        raise MemtoolError(f"{what} is {array.dtype} {array.shape}, not uint8 or float")
    if not array.size:
        return
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):
        raise MemtoolError(
            f"{what} has values from {low:g} to {high:g}; "
            "save them as uint8, or as floats in [0, 1]"
        )


def nchw(images: NDArray[Any], what: str) -> NDArray[Any]:
    """Images (n, h, w), (n, h, w, c) or (n, c, h, w) as (n, c, h, w), where c is 1 or 3.

    Raises MemtoolError, which calls the images `what`, if their shape has none of these forms or
    could have two.

    >>> nchw(np.zeros((10, 32, 32, 3)), "images").shape
    (10, 3, 32, 32)
    """
    if images.ndim == 3:
        return images[:, None]
    first, last = (images.ndim == 4 and images.shape[axis] in (1, 3) for axis in (1, 3))
    if first == last:
        told = "may be (n, c, h, w) or (n, h, w, c)" if first else "is neither"
        raise MemtoolError(
            f"{what} of shape {images.shape}: {told}; "
            "channels are 1 or 3, height and width something else"
        )
    return images if first else images.transpose(0, 3, 1, 2)
