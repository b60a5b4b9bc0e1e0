"""Arrays of images and labels in `.npz` and `.safetensors` files.

They are named `images` and `labels` or, if the data set is split, `train_images`, `train_labels`,
`test_images` and `test_labels`. Images are (n, c, h, w), (n, h, w, c) or (n, h, w), with c = 1 or
3; uint8, or whole numbers in 0..255, or floats in [0, 1]. Labels are whole numbers from 0 on, and
class k is named 'k'.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.data.images import check_memory
from memtool.data.listing import Images, Labels, Listing
from memtool.errors import last_line

SUFFIXES = {".npz", ".safetensors"}
KEYS = ("images", "labels")
MAX_CLASSES = 100_000  # a label beyond is a mistake, and would become as many names


def listed(path: Path) -> Listing:
    """The images and labels in a file.

    Raises MemtoolError for arrays that are missing, malformed or ambiguous.
    """
    arrays = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    prefixes = _prefixes(arrays, path)
    images = _bytes({f"{prefix}images": arrays[f"{prefix}images"] for prefix in prefixes}, path)
    splits = []
    for prefix in prefixes:
        pictures = nchw(images[f"{prefix}images"], f"{path}: {prefix}images")
        labels = _labels(arrays[f"{prefix}labels"], f"{path}: {prefix}labels")
        if len(pictures) != len(labels) or not pictures.size:
            raise MemtoolError(
                f"{path}: {len(pictures)} {prefix}images, {len(labels)} {prefix}labels"
            )
        splits.append((pictures, labels))
    *train, test = splits
    if train and train[0][0].shape[1:] != test[0].shape[1:]:
        raise MemtoolError(
            f"{path}: training images are {train[0][0].shape[1:]}, test images {test[0].shape[1:]}"
        )
    classes = max(int(labels.max()) for _, labels in splits) + 1
    return Listing(tuple(map(str, range(classes))), train[0] if train else None, test)


def _prefixes(arrays: Mapping[str, NDArray[Any]], path: Path) -> tuple[str, ...]:
    """What the names of the arrays of each split begin with; the test split comes last."""
    for prefixes in (("train_", "test_"), ("",)):
        if all(f"{prefix}{key}" in arrays for prefix in prefixes for key in KEYS):
            return prefixes
    raise MemtoolError(
        f"{path}: needs images and labels, or train_images, train_labels, test_images and "
        f"test_labels (it has: {', '.join(arrays) or 'none of them'})"
    )


def _read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    # Not by `tensors.opened`, whose errors are about checkpoints: there, a pickle can be converted.
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if name.endswith(KEYS)]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}
    except FileNotFoundError as error:
        raise MemtoolError(f"{path}: no such file") from error
    except (OSError, SafetensorError, TypeError, ValueError, MemoryError) as error:
        raise MemtoolError(f"{path}: cannot be read ({last_line(error)})") from error


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays whose names end in images or labels. Arrays of objects, which would run code when
    they are read, are refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                name: member
                for member in archive.infolist()
                if (name := member.filename.removesuffix(".npy")).endswith(KEYS)
            }
            check_memory(sum(member.file_size for member in members.values()), str(path))
            return {name: _read_npy(archive, member) for name, member in members.items()}
    except FileNotFoundError as error:
        raise MemtoolError(f"{path}: no such file") from error
    except MemtoolError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds for broken files
        raise MemtoolError(f"{path}: cannot be read ({last_line(error)})") from error


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """One array, not read beyond the size that the archive states, whatever its header claims."""
    with archive.open(member) as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _bytes(arrays: Mapping[str, NDArray[Any]], path: Path) -> dict[str, Images]:
    """The images of all splits as uint8: whole numbers in 0..255 as they are, floats in [0, 1]
    times 255."""
    if all(array.dtype == np.uint8 for array in arrays.values()):
        return dict(arrays)
    for name, array in arrays.items():
        _check_range(array, f"{path}: {name}")
    floats = all(array.dtype.kind == "f" for array in arrays.values())
    if floats and max(array.max() for array in arrays.values()) <= 1:
        return {name: np.rint(array * 255).astype(np.uint8) for name, array in arrays.items()}
    for name, array in arrays.items():
        if not (array == np.rint(array)).all():
            raise MemtoolError(
                f"{path}: {name} has fractions and values above 1; "
                "save them as uint8, or as floats in [0, 1]"
            )
    return {name: array.astype(np.uint8) for name, array in arrays.items()}


def _check_range(array: NDArray[Any], what: str) -> None:
    """Raise MemtoolError unless all values are numbers in 0..255."""
    if array.dtype.kind not in "uif" or not array.size:
        raise MemtoolError(f"{what} is {array.dtype} {array.shape}, not uint8 or float")
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


def _labels(labels: NDArray[Any], what: str) -> Labels:
    """Labels of any integer type, (n,) or (n, 1), as int64 (n,)."""
    if labels.dtype.kind not in "ui" or labels.shape not in ((labels.size,), (labels.size, 1)):
        raise MemtoolError(f"{what} are {labels.dtype} {labels.shape}, not whole numbers (n,)")
    if labels.size and not (labels.min() >= 0 and labels.max() < MAX_CLASSES):
        raise MemtoolError(f"{what} go from {labels.min()} to {labels.max()}; classes count from 0")
    return labels.reshape(-1).astype(np.int64)
