"""Arrays of images and labels in `.npz` and `.safetensors` files.

They are named `images` and `labels`, or `train_images`, `train_labels`, `test_images` and
`test_labels`. Images are (n, c, h, w), (n, h, w, c) or (n, h, w) with one or three channels; uint8,
or whole numbers in 0..255, or floats in [0, 1]. Labels are whole numbers from 0 on.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.data.images import Images, check_memory
from memtool.errors import last_line

Labels = NDArray[np.int64]

SUFFIXES = {".npz", ".safetensors"}
KEYS = ("images", "labels")
MAX_CLASSES = 100_000  # a label beyond is a mistake, and would become as many names


def read(path: Path) -> list[tuple[Images, Labels]]:
    """The training and the test split, or a single one: images (n, c, h, w) and labels (n,).

    Raises MemtoolError for arrays that are missing, malformed or ambiguous.
    """
    arrays = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    parts = [("train_", "test_"), ("",)]
    prefixes = next(
        (names for names in parts if all(f"{n}{key}" in arrays for n in names for key in KEYS)),
        None,
    )
    if prefixes is None:
        raise MemtoolError(
            f"{path}: needs images and labels, or train_images, train_labels, test_images and "
            f"test_labels (it has: {', '.join(arrays) or 'none of them'})"
        )
    images = _bytes({f"{name}images": arrays[f"{name}images"] for name in prefixes}, path)
    splits = []
    for name in prefixes:
        pictures = nchw(images[f"{name}images"], f"{path}: {name}images")
        labels = _labels(arrays[f"{name}labels"], f"{path}: {name}labels")
        if len(pictures) != len(labels) or not pictures.size:
            raise MemtoolError(f"{path}: {len(pictures)} {name}images, {len(labels)} {name}labels")
        splits.append((pictures, labels))
    shapes = [pictures.shape[1:] for pictures, _ in splits]
    if shapes[0] != shapes[-1]:
        raise MemtoolError(f"{path}: training images are {shapes[0]}, test images {shapes[-1]}")
    return splits


def _read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
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
    """The arrays named like images and labels; objects, which would run code, are refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                member.filename.removesuffix(".npy"): member
                for member in archive.infolist()
                if member.filename.removesuffix(".npy").endswith(KEYS)
            }
            check_memory(sum(member.file_size for member in members.values()), str(path))
            return {name: _read_npy(archive, member) for name, member in members.items()}
    except FileNotFoundError as error:
        raise MemtoolError(f"{path}: no such file") from error
    except MemtoolError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for broken files
        raise MemtoolError(f"{path}: cannot be read ({last_line(error)})") from error


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """One array; not read beyond what the archive says, whatever its own header claims."""
    with archive.open(member) as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _bytes(arrays: Mapping[str, NDArray[Any]], path: Path) -> dict[str, Images]:
    """Images as uint8: whole numbers in 0..255 as they are, floats in [0, 1] times 255."""
    if all(array.dtype == np.uint8 for array in arrays.values()):
        return dict(arrays)
    for name, array in arrays.items():
        if array.dtype.kind not in "uif" or not array.size:
            raise MemtoolError(f"{path}: {name} is {array.dtype} {array.shape}, not uint8 or float")
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 255):
            raise MemtoolError(
                f"{path}: {name} has values from {low:g} to {high:g}; "
                "save them as uint8, or as floats in [0, 1]"
            )
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


def nchw(images: NDArray[Any], what: str) -> NDArray[Any]:
    """(n, h, w), (n, h, w, c) or (n, c, h, w) as (n, c, h, w); c is 1 or 3."""
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
    """Class numbers as int64 (n,)."""
    if labels.dtype.kind not in "ui" or labels.shape not in ((labels.size,), (labels.size, 1)):
        raise MemtoolError(f"{what} are {labels.dtype} {labels.shape}, not whole numbers (n,)")
    if labels.size and not (labels.min() >= 0 and labels.max() < MAX_CLASSES):
        raise MemtoolError(f"{what} go from {labels.min()} to {labels.max()}; classes count from 0")
    return labels.reshape(-1).astype(np.int64)
