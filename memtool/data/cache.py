"""Decoded images that outgrow memory: they are kept in a file and mapped into memory.

The file is in `cache_folder()`. Its name is a fingerprint of the listing: the images' paths within
their folder, sizes and times of modification, the bytes of a few, their order and labels, the
options that change pixels, and the version of Pillow. So a folder in which something changes gets
another file; the old one is left, and may be removed at any time. (An image that is changed, or
exchanged for another, without a change of its size and time is seen only if it is one of the few.
Numbers of inodes would tell, but a copy of a folder, or one mounted elsewhere, has others.)

It is in the format of safetensors: `images`, uint8 (n, c, h, w), `checksums`, the CRC-32 of each,
uint32 (n,), and, as metadata, what would else need a pass over all images. It is whole or absent:
written under a temporary name, synchronized and renamed. When it is opened, its size, shapes and
metadata are checked; each image is compared with its checksum when a process first asks for it in
a batch.

Of several processes that need the same file, one writes it and the others wait; if that one dies,
the next goes on in its place.
"""

import errno
import json
import logging
import math
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.data.batches import Checksums, Split
from memtool.data.images import Shape, decoded
from memtool.data.listing import Images, Labels, Vectors
from memtool.data.sources import user_cache
from memtool.data.spec import Options
from memtool.data.statistics import CHUNK, channel_statistics, fingerprint
from memtool.errors import told_size
from memtool.files import claimed, replacing
from memtool.paths import expanded
from memtool.progress import Advance, Progress
from memtool.tensors import Metadata, encoded, opened, read_metadata

logger = logging.getLogger("memtool")

VERSION = 1
START = 2**20  # bytes before the first image: the header, written last, and spaces
KIND = "cache"
FEW = 32  # images, at most, whose bytes tell a folder from another one
MEASURED = ("mean", "std", "fingerprint")


@dataclass(frozen=True)
class AllImages:
    """All images of a data set, or vectors; if they are a map of a file, with checksums and what
    is known of them."""

    images: Images | Vectors
    checksums: Checksums | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)

    def split(self, part: slice, labels: Labels) -> Split:
        return Split(self.images[part], labels, self.checksums and self.checksums[part])


def cache_folder() -> Path:
    """Where decoded images are kept: MEMTOOL_CACHE, else `memtool` in the user's cache."""
    folder = os.environ.get("MEMTOOL_CACHE")
    return expanded(folder) if folder else user_cache()


def cached(
    paths: list[str],
    labels: Sequence[Labels],
    shape: Shape,
    spec: str,
    options: Options,
    progress: Progress,
) -> AllImages:
    """The images in n files, decoded as by `images.decoded` into a file, unless it is there.

    `labels` are those of each split, and `shape` is the one expected. Raises MemtoolError as
    `decoded` does, and if the disk is full.
    """
    file = cache_folder() / f"images-{_key(paths, labels, options)}.safetensors"
    found = _opened(file, len(paths))
    if found is None:
        with _alone(file, spec):
            # Another process may have written it meanwhile.
            found = _opened(file, len(paths), tell=True)
            if found is None:
                _check_space(file.parent, shape, spec)
                _write(file, paths, labels, spec, options, progress)
                found = _opened(file, len(paths), tell=True)
    if found is None:
        raise MemtoolError(f"{file}: is not as it was written; is the disk in order?")
    content, notes = found
    for note in [*notes, f"{spec}: decoded images are in {file}"]:
        logger.info(note)
    return content


def _key(paths: Sequence[str], labels: Sequence[Labels], options: Options) -> str:
    """The fingerprint of a listing, as hexadecimal digits."""
    from PIL import __version__ as pillow

    mean = options.mean if options.crop_mode == "border" else None
    ours = replace(options, split_at=None, samples=None, samples_train=None, mean=mean, std=None)
    digest = sha256(repr((VERSION, pillow, ours, list(map(len, labels)))).encode())
    for part in labels:
        digest.update(np.ascontiguousarray(part).data)
    root = os.path.commonprefix(paths).rpartition(os.sep)[0]
    for path in paths:
        size, time = None, None  # of a file that is gone; reading it will tell
        with suppress(OSError):
            stat = os.stat(path)
            size, time = stat.st_size, stat.st_mtime_ns
        digest.update(os.fsencode(f"{path[len(root) :]}\0{size} {time}\n"))
    for path in paths[:: len(paths) // FEW + 1]:  # archives may give all images one size and time
        with suppress(OSError):
            digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:32]


def _opened(file: Path, count: int, tell: bool = False) -> tuple[AllImages, list[str]] | None:
    """The images in a file, and the notes of their decoding; None if it is absent or, which
    `tell` says in a warning, damaged."""
    if not file.exists():
        return None
    try:
        metadata = read_metadata(file, KIND)
        with opened(file, "numpy") as tensors:
            if {*tensors.keys()} != {"checksums", "images"}:
                raise MemtoolError(f"{file}: does not hold images and their checksums")
            shape = tuple(tensors.get_slice("images").get_shape())
            checksums = tensors.get_tensor("checksums")
        measured = {key: metadata["data"].get(key) for key in MEASURED}
        if not (
            len(shape) == 4
            and shape[0] == count
            and file.stat().st_size == _size(shape)
            and (checksums.shape, checksums.dtype) == ((count,), np.uint32)
            and all(measured.values())
            and len(measured["mean"]) == len(measured["std"]) == shape[1]
        ):
            raise MemtoolError(f"{file}: does not hold {count} images")
        measured["bits"] = metadata["data"].get("bits")
    except MemtoolError:
        if tell:
            logger.warning(
                f"{file}: is not as this memtool writes it; its images are decoded again"
            )
        return None
    content = AllImages(_mapped(file, shape, "c"), Checksums(checksums, file), measured)
    return content, metadata["data"].get("notes", [])


def _mapped(file: Path, shape: Sequence[int], mode: Any) -> Images:
    """The images in a file. Of mode "c", an array that may be written to without a change of the
    file."""
    return np.memmap(file, np.uint8, mode, START, tuple(shape))


@contextmanager
def _alone(file: Path, spec: str) -> Iterator[None]:
    """Within the block, no other process writes `file`, where that can be had."""

    def waiting() -> None:
        logger.info(f"{spec}: another process is decoding it into {file}; waiting")

    with ExitStack() as stack:
        try:
            stack.enter_context(claimed(file, waiting))
        except MemtoolError as error:
            raise MemtoolError(
                f"{spec}: its images take more than --memory, and {error}; name another folder "
                "(MEMTOOL_CACHE), or allow them more memory"
            ) from error
        yield


def _check_space(folder: Path, shape: Shape, spec: str) -> None:
    """Raise MemtoolError unless there is room for the images on the disk."""
    needed, free = _size(shape), shutil.disk_usage(folder).free
    if needed > free:
        raise MemtoolError(
            f"{spec}: its images take {told_size(needed)} decoded, more than --memory, and "
            f"{folder} has {told_size(free, up=False)} left for them; remove files of other data "
            "sets there, name a folder on another disk (MEMTOOL_CACHE), or take smaller images or "
            "fewer (--image-size, --samples)"
        )
    logger.info(
        f"{spec}: its images take {told_size(needed)} decoded, more than --memory, and are decoded "
        f"once into a file in {folder}"
    )


def _write(
    file: Path,
    paths: list[str],
    labels: Sequence[Labels],
    spec: str,
    options: Options,
    progress: Progress,
) -> None:
    """Decode the images into a file."""
    with replacing(file) as temporary:
        with progress(f"decoding {spec}", len(paths)) as advance:
            images, notes, bits = decoded(
                paths, spec, options, advance, lambda shape: _room(temporary, shape)
            )
        border = len(labels[0])
        statistics_of = images[:border] if border else images
        with progress(f"measuring {spec}", 2 * len(images) + len(statistics_of)) as advance:
            statistics = channel_statistics(statistics_of, advance)
            measured = {
                "mean": [mean for mean, _ in statistics],
                "std": [std or 1.0 for _, std in statistics],
                "fingerprint": fingerprint(
                    zip((images[:border], images[border:]), labels, strict=True), advance
                ),
            }
            checksums = _checksums(images, advance)
        images.flush()  # type: ignore[attr-defined]
        data = {"name": spec, "notes": notes, **measured, **({"bits": bits} if bits else {})}
        _complete(temporary, images.shape, checksums, {"data": data})


def _size(shape: Sequence[int]) -> int:
    """Of a file, in bytes: the header, the images and their checksums."""
    return START + math.prod(shape) + 4 * shape[0]


def _room(file: Path, shape: Shape) -> Images:
    """Room in a new file for images; the blocks of the disk are taken at once, since a map cannot
    tell that there are none left."""
    file.unlink(missing_ok=True)
    size = _size(shape)
    with open(file, "wb") as stream:
        stream.truncate(size)
        with _unless_full():
            os.posix_fallocate(stream.fileno(), 0, size)
    return _mapped(file, shape, "r+")


@contextmanager
def _unless_full() -> Iterator[None]:
    """Ignore that a system cannot do what is done in the block, unless the disk is full."""
    try:
        yield
    except AttributeError:  # of `os`, on macOS
        pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise


def _checksums(images: Images, advance: Advance) -> NDArray[np.uint32]:
    found = np.empty(len(images), dtype=np.uint32)
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        found[start : start + CHUNK] = [zlib.crc32(image) for image in chunk]
        advance(len(chunk))
    return found


def _complete(
    file: Path, shape: Sequence[int], checksums: NDArray[np.uint32], metadata: Metadata
) -> None:
    """Write what a file has beside its images: the header before, the checksums after them."""
    size = math.prod(shape)
    header = {
        "__metadata__": encoded(KIND, metadata),
        "images": {"dtype": "U8", "shape": list(shape), "data_offsets": [0, size]},
        "checksums": {
            "dtype": "U32",
            "shape": [len(checksums)],
            "data_offsets": [size, size + checksums.nbytes],
        },
    }
    text = json.dumps(header).encode().ljust(START - 8)
    assert len(text) == START - 8, "notes are a few lines"
    with open(file, "r+b") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.seek(START + size)
        stream.write(checksums.astype("<u4").tobytes())
        stream.flush()
        os.fsync(stream.fileno())
