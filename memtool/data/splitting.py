"""Choosing examples without random numbers, each class in proportion: splits and samples."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.data.listing import Examples, Labels, Listing


def stratified(labels: Labels, size: int) -> NDArray[np.bool_]:
    """A mask, (n,), that chooses `size` of n examples, each class in proportion.

    A class gets its share rounded down; the examples that remain go to the classes with the largest
    remainders. Within a class, the choice is spread evenly over the order of the examples. (The
    digits are sorted by writer, so that each writer is in both splits.) There are no random
    numbers: the choice is the same everywhere.

    >>> stratified(np.array([0, 0, 0, 0, 1, 1]), 3)
    array([False,  True, False,  True, False,  True])
    """
    counts = np.bincount(labels)
    shares = counts * size / len(labels)
    sizes = np.floor(shares).astype(int)
    for label in np.argsort(sizes - shares, kind="stable")[: size - sizes.sum()]:
        sizes[label] += 1
    chosen = np.zeros(len(labels), dtype=bool)
    for label, (count, share) in enumerate(zip(counts, sizes, strict=True)):
        positions = (np.arange(share) + 0.5) * count / share
        chosen[np.flatnonzero(labels == label)[positions.astype(int)]] = True
    return chosen


def divided(listing: Listing, size: float, spec: str) -> Listing:
    """A listing that is not split, divided into a training and a test split.

    `size` is that of the training split: a fraction (float) or a number of examples (int). Raises
    MemtoolError, which names `spec`, if there is a training split already, or if one of the two
    would be empty.
    """
    if listing.train is not None:
        raise MemtoolError(f"{spec}: has a training split; leave out split_at")
    n = len(listing.test)
    count = round(size * n) if isinstance(size, float) else size
    if not 0 < count < n:
        raise MemtoolError(
            f"{spec}: of its {n} images, split_at leaves {max(0, count)} to train on "
            f"and {max(0, n - count)} to test on"
        )
    test = stratified(listing.test.labels, n - count)
    return replace(listing, train=listing.test[~test], test=listing.test[test])


def with_fewer(listing: Listing, size: int) -> Listing:
    """At most `size` of the training examples, and all test examples."""
    if listing.train is None:
        return listing
    return replace(listing, train=_fewer(listing.train, size))


def sampled(listing: Listing, size: int) -> Listing:
    """At most `size` of the test examples, and no training examples."""
    return replace(listing, train=None, test=_fewer(listing.test, size))


def _fewer(examples: Examples, size: int) -> Examples:
    return examples[stratified(examples.labels, min(size, len(examples)))]
