"""Images on a device: all of them where they fit, else batch by batch."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.data.listing import Images, Labels, Vectors
from memtool.device import memory_of

if TYPE_CHECKING:
    import torch

CHUNK = 256  # images that are moved to a device at a time


@dataclass(frozen=True)
class Checksums:
    """The CRC-32 of each image, uint32 (n,), that images in a file must have."""

    values: NDArray[np.uint32]
    file: Path

    def __getitem__(self, part: slice) -> "Checksums":
        return Checksums(self.values[part], self.file)

    def check(self, images: Images, positions: NDArray[np.int64]) -> None:
        """Raise MemtoolError unless these are the images, (b, c, h, w), at the positions, (b,)."""
        found = np.array([zlib.crc32(image) for image in images], dtype=np.uint32)
        if (wrong := found != self.values[positions]).any():
            raise MemtoolError(
                f"{self.file}: is damaged ({wrong.sum()} of {len(images)} images are not as they "
                "were written); remove it, and they are decoded again"
            )


@dataclass(frozen=True)
class Split:
    """The images of a split, uint8 (n, channels, height, width), and their true labels, int64 (n,).

    Instead of images there may be vectors, float32 (n, features). Label k is the k-th of the data
    set's `classes`. Where the images are a map of a file, they have `checksums`.
    """

    images: Images | Vectors
    labels: Labels
    checksums: Checksums | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def on(self, device: "torch.device") -> "torch.Tensor | HostImages":
        """The images, or vectors, for use on a device; see `on_device`."""
        return on_device([self], device)


def on_device(splits: Sequence[Split], device: "torch.device") -> "torch.Tensor | HostImages":
    """The images of the splits, one after another, for use on a device.

    They are a tensor there if they fit: on the CPU, if it needs no copy; on CUDA, if it takes at
    most half of what is free. Else they are what gives batches of such a tensor, from the same
    indices.
    """
    import torch

    held = HostImages(splits, device)
    if device.type == "cpu":
        if len(splits) > 1 or splits[0].checksums:
            return held
        return torch.from_numpy(splits[0].images)
    if device.type == "cuda":
        return held.whole() if bytes_on_device(splits, device) else held
    return held if any(split.checksums for split in splits) else held.whole()


def bytes_on_device(splits: Sequence[Split], device: "torch.device") -> int:
    """The memory that `on_device` takes there for all images together: none but on CUDA, where
    they have to fit."""
    needed = HostImages(splits, device).nbytes
    return needed if device.type == "cuda" and 2 * needed <= memory_of(device) else 0


class _Copied(NamedTuple):
    """The memory of a device that some indices are part of, how often it has been changed, and what
    was in there, on the host."""

    memory: "torch.UntypedStorage"
    version: int
    values: "torch.Tensor"

    @staticmethod
    def of(indices: "torch.Tensor") -> "_Copied":
        memory = indices.untyped_storage()
        return _Copied(memory, indices._version, indices.new_empty(0).set_(memory).cpu())

    def has(self, indices: "torch.Tensor") -> bool:
        is_same = indices.untyped_storage().data_ptr() == self.memory.data_ptr()
        return is_same and (indices._version, indices.dtype) == (self.version, self.values.dtype)

    def part(self, indices: "torch.Tensor") -> "torch.Tensor":
        return self.values.as_strided(indices.shape, indices.stride(), indices.storage_offset())


class HostImages:
    """Images of one or more splits, one after another, in the host's memory or in a file that is
    mapped there. `images[indices]` is a batch, uint8 (b, c, h, w), on `device`.

    An image with a checksum is compared with it the first time that it is asked for; MemtoolError
    if it is another. Indices on a device should be parts of one tensor, such as the order of an
    epoch: that is copied to the host once, since the host waits for each copy.
    """

    def __init__(self, splits: Sequence[Split], device: "torch.device") -> None:
        self.device = device
        self._parts = [(split, np.zeros(len(split), dtype=bool)) for split in splits if len(split)]
        self._parts = self._parts or [(splits[0], np.zeros(0, dtype=bool))]
        self._copied: _Copied | None = None

    def __len__(self) -> int:
        return sum(len(split) for split, _ in self._parts)

    @property
    def nbytes(self) -> int:
        return sum(split.images.nbytes for split, _ in self._parts)

    def __getitem__(self, indices: "torch.Tensor | slice | Sequence[int]") -> "torch.Tensor":
        """The images at these indices, int64 (b,) on any device, or a slice. Raises IndexError for
        negative indices, too."""
        import torch

        batch = torch.from_numpy(self._gathered(self._positions(indices)))
        if self.device.type == "cuda":  # nobody waits; PyTorch keeps the copy until it is read
            return batch.pin_memory().to(self.device, non_blocking=True)
        return batch.to(self.device)

    def _positions(self, indices: "torch.Tensor | slice | Sequence[int]") -> NDArray[np.int64]:
        import torch

        if isinstance(indices, slice):
            return np.arange(*indices.indices(len(self)))
        if isinstance(indices, torch.Tensor) and indices.device.type != "cpu":
            indices = self._on_host(indices)
        return np.asarray(indices, dtype=np.int64)

    def _on_host(self, indices: "torch.Tensor") -> "torch.Tensor":
        if indices.is_inference():  # nobody tells whether it has changed
            return indices.cpu()
        if self._copied is None or not self._copied.has(indices):
            self._copied = _Copied.of(indices)
        return self._copied.part(indices)

    def _gathered(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"an index is not in 0..{len(self) - 1}")
        first = self._parts[0][0].images
        found = np.empty((len(positions), *first.shape[1:]), dtype=first.dtype)
        start = 0
        for split, checked in self._parts:
            here = (start <= positions) & (positions < start + len(split))
            found[here] = _checked_images(split, checked, positions[here] - start)
            start += len(split)
        return found

    def whole(self) -> "torch.Tensor":
        """All images in one tensor on the device."""
        import torch

        first = self._parts[0][0].images
        result = torch.empty(
            (len(self), *first.shape[1:]),
            dtype=getattr(torch, str(first.dtype)),
            device=self.device,
        )
        for start in range(0, len(self), CHUNK):
            result[start : start + CHUNK] = self[start : start + CHUNK]
        return result


def _checked_images(
    split: Split, checked: NDArray[np.bool_], positions: NDArray[np.int64]
) -> NDArray[Any]:
    """The images of a split at these positions; those that are not `checked` yet are, now."""
    images: NDArray[Any] = np.asarray(split.images)[positions]
    if split.checksums:
        new = ~checked[positions]
        split.checksums.check(images[new], positions[new])
        checked[positions] = True
    return images
