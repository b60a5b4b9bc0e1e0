"""What is measured of the content of a data set: channel by channel, feature by feature, and a
fingerprint of it all. Images may lie in a file that is mapped into memory: they are read once."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtool.data.listing import Labels
from memtool.progress import Advance, unseen

CHUNK = 256  # examples at a time


def channel_statistics(
    images: NDArray[Any], advance: Advance = unseen
) -> list[tuple[float, float]]:
    """Mean and standard deviation of each channel of uint8 images, (n, c, h, w), in units of 255.

    They come from exact counts of the pixel values, so that the deviation is 0 if and only if the
    channel is constant. `advance` is told of n images.
    """
    from PIL import Image

    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        for channel, pixels in enumerate(chunk.swapaxes(0, 1)):
            # Fourteen times as fast as NumPy's bincount, which makes int64 copies.
            counts[channel] += Image.fromarray(pixels.reshape(-1, images.shape[3])).histogram()
        advance(len(chunk))
    values = np.arange(256) / 255
    means = counts @ values / counts.sum(axis=1)
    spread = (counts * (values - means[:, None]) ** 2).sum(axis=1) / counts.sum(axis=1)
    spread[(counts > 0).sum(axis=1) == 1] = 0  # no rounding noise of some 1e-34
    return list(zip(means.tolist(), np.sqrt(spread).tolist(), strict=True))


def feature_statistics(vectors: NDArray[Any]) -> list[tuple[float, float]]:
    """Mean and standard deviation of each feature of vectors, (n, d), in float64; the latter is 0
    if and only if the feature is constant."""
    chunks = [vectors[start : start + CHUNK] for start in range(0, len(vectors), CHUNK)]
    total = sum(chunk.sum(axis=0, dtype=np.float64) for chunk in chunks)
    means = np.asarray(total) / len(vectors)
    squares = sum(((chunk - means) ** 2).sum(axis=0) for chunk in chunks)
    spread = np.sqrt(np.asarray(squares) / len(vectors))
    spread[vectors.min(axis=0) == vectors.max(axis=0)] = 0
    return list(zip(means.tolist(), spread.tolist(), strict=True))


def fingerprint(splits: Iterable[tuple[NDArray[Any], Labels]], advance: Advance = unseen) -> str:
    """SHA-256 of the images, or vectors, and labels of each split. `advance` is told of all
    examples."""
    digest = hashlib.sha256()
    for images, labels in splits:
        digest.update(repr(images.shape).encode())
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            digest.update(np.ascontiguousarray(chunk).data)
            advance(len(chunk))
        digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()
