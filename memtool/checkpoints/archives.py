"""The files of `torch.save` and `pickle.dump`: a pickle, and the storages of its tensors.

Since PyTorch 1.6 they are zip archives with a member for each storage, in the order of bytes of the
machine that wrote it; before, several pickles and then the storages, one after the other, whose
numbers begin with their lowest byte on all machines. A pickle alone has its storages within.
"""

import io
import logging
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from memtool.checkpoints.pickles import Name, Reference, read
from memtool.contents import AGAIN, check_regular, check_unpacked

logger = logging.getLogger("memtool")

MAGIC = 0x1950A86A20F9469CFC6C  # what the first pickle of an old file holds
VERSION = 1001

# The types of storages, by the names of their classes.
TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "UntypedStorage": torch.uint8,
}


@dataclass(frozen=True)
class Archive:
    """What a file holds, as `pickles.read` gives it. `read_bytes` returns the bytes of the storage
    of a key; it raises KeyError if there is none. `is_big_endian` says that numbers in them begin
    with their highest byte."""

    content: Any
    read_bytes: Callable[[str], bytearray]
    is_big_endian: bool = False
    _storages: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def storage(self, reference: Any, of: torch.dtype | None = None) -> Tensor:
        """The numbers (n,) in the storage that a pickle refers to; `of` is their type where they
        are given as bytes. Raises ValueError, with the rest of a sentence about a tensor, if there
        is none, or it is smaller than the pickle says."""
        key, dtype, size, view = _parsed(reference)
        width = _width(of or dtype) if self.is_big_endian else 1
        if (key, width) not in self._storages:
            try:
                self._storages[key, width] = _tensor(self.read_bytes(key), width)
            except KeyError as error:
                raise ValueError(f"lies in a storage that is not there ({key!r:.40})") from error
        content = self._storages[key, width]
        if size * dtype.itemsize > len(content):
            raise ValueError(
                f"lies in a storage of {len(content):,} bytes, not of {size:,} numbers of {dtype}"
            )
        numbers = content[: size * dtype.itemsize].view(dtype)
        match view:
            case (_, int(start), int(length)) if 0 <= start and 0 <= length <= size - start:
                return numbers[start : start + length]
            case None:
                return numbers
        raise ValueError("lies in a part outside of its storage")


def _parsed(reference: Any) -> tuple[str, torch.dtype, int, Any]:
    """The key of a storage, its type, how many numbers it has, and which of them are meant."""
    match reference.id if isinstance(reference, Reference) else None:
        case ("storage", Name(name=name), str(key), _, int(size), *view) if size >= 0:
            if name not in TYPES:
                raise ValueError(f"lies in a {name}, which memtool does not read")
            return key, TYPES[name], size, view[0] if view else None
    raise ValueError("has no storage as PyTorch writes them")


def _width(dtype: torch.dtype) -> int:
    """How many bytes have an order: those of a number, of a complex one those of each part."""
    return dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize


def _tensor(content: bytearray, width: int) -> Tensor:
    """The bytes of a storage, so many at a time in reverse."""
    if not content:
        return torch.empty(0, dtype=torch.uint8)
    found = torch.frombuffer(content, dtype=torch.uint8)
    if width == 1:
        return found
    return found[: len(found) // width * width].view(-1, width).flip(1).flatten()


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The archive in a file, from which storages can be read within the block.

    Nothing in it runs. Raises OSError, ValueError or nearly anything else if it is broken.
    """
    check_regular(path)
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                yield _zipped(archive, path.stat().st_size)
        else:
            file.seek(0)
            content = unzipped(file)
            if file.read(1):
                logger.info(f"{path}: holds more than one pickle; only the first was read")
            yield content


def _zipped(archive: zipfile.ZipFile, size: int) -> Archive:
    check_unpacked(archive, size)
    members = {member.filename: member for member in archive.infolist()}
    for member in members.values():
        if member.CRC == 0:  # PyTorch may have been told not to compute it
            del member.CRC
    name = next(name for name in members if re.search(r"(^|/)data\.pkl$", name))
    folder = name.removesuffix("data.pkl")
    order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in members else b"little"
    if order not in (b"little", b"big"):
        raise ValueError(f"its order of bytes is {order!r:.40}")
    content, _ = read(io.BytesIO(archive.read(name)))

    def read_bytes(key: str) -> bytearray:
        return bytearray(archive.read(f"{folder}data/{key}"))

    return Archive(content, read_bytes, order == b"big")


def unzipped(file: IO[bytes]) -> Archive:
    """The archive in a file of PyTorch before 1.6, or a pickle alone."""
    content, _ = read(file)
    if content == MAGIC:
        return _several_pickles(file)
    nothing: dict[str, bytearray] = {}
    return Archive(content, nothing.__getitem__)


def _several_pickles(file: IO[bytes]) -> Archive:
    """What follows the magic number: a version, the machine, the content, the keys of storages,
    and each of these as the number of its elements (int64) and the elements."""
    version, _ = read(file)[0], read(file)
    if version != VERSION:
        raise ValueError(f"it is of version {version!r:.40}")
    content, references = read(file)
    sizes = {key: dtype.itemsize for key, dtype, _, _ in map(_parsed, references)}
    places: dict[str, tuple[int, int]] = {}
    for key in read(file)[0]:
        length = int.from_bytes(file.read(8), "little") * sizes[key]
        places[key] = (file.tell(), length)
        file.seek(length, io.SEEK_CUR)

    def read_bytes(key: str) -> bytearray:
        start, length = places[key]
        if start + length > file.seek(0, io.SEEK_END):
            raise ValueError(f"lies in a storage that is cut short; {AGAIN}")
        file.seek(start)
        return bytearray(file.read(length))

    return Archive(content, read_bytes)
