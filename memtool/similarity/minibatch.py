"""Whole Gram matrices of batches."""

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from memtool.similarity.gram import (
    CHUNK,
    GROUPS,
    Product,
    Statistics,
    _mean,
    _type,
    hsic,
    median_distance,
    squared_distances,
    wide,
)
from memtool.similarity.settings import Estimator, Kernel

STRIPS = 4  # of a symmetric matrix: 10 of 16 parts are computed, in products still large


class BatchGrams(Statistics):
    """Whole Gram matrices of the present batch, for `minibatch`."""

    def begin(self, batch: int, size: int, keep: bool = True, first: bool = False) -> None:
        """`keep`: the batch counts."""
        super().begin(batch, size)
        self.weight = size if keep else 0  # the number of examples that were not counted before
        self.drop()

    def drop(self) -> None:
        # By layer: the sum of squares of its mean; the diagonal of Kc for `rbf`.
        self._means: dict[int, Tensor] = {}
        self._diagonals: dict[int, Tensor] = {}
        self._grams = torch.empty(0)  # (layers, k), k elements of each Gram matrix
        self._completed: tuple[Tensor, Tensor] | None = None

    def _see(self, i: int, x: Tensor) -> None:
        # What can be done for all layers at once is left for `complete`.
        if self.kernel is Kernel.rbf:
            return self._see_rbf(i, x)
        type_ = self._grams.dtype if self._grams.numel() else _type(x)
        strips = _strips(len(x), type_, x.device)
        gram = self._row(i, strips.size, type_, x.device)
        for part in x.split(CHUNK, dim=1):
            mean = _mean(part)
            centered = self._centered(part, mean)
            strips.add(gram, centered.to(type_), first=i not in self._means)
            square = mean.dot(mean)
            self._means[i] = self._means[i] + square if i in self._means else square

    def _see_rbf(self, i: int, x: Tensor) -> None:
        mean = _mean(x)
        self._means[i] = mean.dot(mean)
        x = self._centered(x, mean)
        gram = x @ x.T
        self._measure(i, wide(gram.diagonal()).sum(), self._means[i])
        gram, self._diagonals[i] = _rbf(gram, self.bandwidth)
        self._row(i, gram.numel(), gram.dtype, x.device).copy_(gram.flatten())

    def _row(self, i: int, size: int, type_: torch.dtype, device: torch.device) -> Tensor:
        """Where the elements of a layer's Gram matrix go, (size,)."""
        if not self._grams.numel():
            self._grams = torch.empty(len(self.layers), size, dtype=type_, device=device)
        return self._grams[i]

    def complete(self) -> tuple[Tensor, Tensor]:
        """Vectors, one a layer, whose inner products are S, (layers, k), and diag Kc of each layer,
        (layers, size)."""
        if self._completed is None:
            if self.kernel is Kernel.rbf:
                self._completed = self._grams, torch.stack(self._each(self._diagonals))
            else:
                means = torch.stack(self._each(self._means))
                strips = _strips(self.size, self._grams.dtype, self._grams.device)
                diagonals = wide(strips.diagonals(self._grams))
                self._measure(slice(None), diagonals.sum(1), means)
                self._completed = wide(strips.weigh(self._grams)), diagonals
        return self._completed

    def contributions(
        self, other: "BatchGrams", product: Product
    ) -> Iterator[tuple[set[int], Tensor]]:
        """What the present batch adds to the sums, and the groups of batches that it is from."""
        (x, d), (y, e) = self.complete(), other.complete()
        traces = product(d.sum(1, keepdim=True), e.sum(1, keepdim=True))
        value = hsic(Estimator.unbiased, product(x, y), product(d, e), traces, self.size)
        yield {self.batch % GROUPS}, self.weight * value

    def hsic(
        self, other: "BatchGrams", product: Product, total: Tensor, without: int | None
    ) -> Tensor:
        """HSIC up to a factor common to all pairs of layers, from the sums."""
        return total


class _Strips:
    """The half of a symmetric matrix (n, n) that is computed: vertical strips of its lower
    triangle, as a vector of `size` elements."""

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device) -> None:
        step = max(32, -(-n // STRIPS))
        self._columns = [(start, min(start + step, n)) for start in range(0, n, step)]
        weights, diagonal, at = [], [], 0
        for start, stop in self._columns:
            width = stop - start
            strip = torch.full((n - start, width), math.sqrt(2), dtype=dtype)
            strip[:width] = 1
            strip.diagonal().zero_()
            weights.append(strip.flatten())
            diagonal.append(torch.arange(width) * (width + 1) + at)
            at += strip.numel()
        self._weights = torch.cat(weights).to(device)
        self._diagonal = torch.cat(diagonal).to(device)

    @property
    def size(self) -> int:
        return len(self._weights)

    def add(self, vector: Tensor, x: Tensor, first: bool) -> None:
        """Add X X^T of centered features (n, p) to `vector`, or set it, if it is the `first`."""
        at, n = 0, len(x)
        for start, stop in self._columns:
            length = (n - start) * (stop - start)
            strip = vector[at : at + length].view(n - start, stop - start)
            rows, columns = x[start:], x[start:stop].T
            if first:
                torch.mm(rows, columns, out=strip)
            else:
                torch.addmm(strip, rows, columns, out=strip)
            at += length

    def diagonals(self, vectors: Tensor) -> Tensor:
        """Of each of the vectors (m, size) the diagonal, (m, n)."""
        return vectors[:, self._diagonal]

    def weigh(self, vectors: Tensor) -> Tensor:
        """The vectors (m, size), in place, so that their inner products are those of the matrices
        without diagonals: an element that stands for two times sqrt 2, one of the diagonal 0."""
        return vectors.mul_(self._weights)


@lru_cache(maxsize=4)
def _strips(n: int, dtype: torch.dtype, device: torch.device) -> _Strips:
    with torch.inference_mode(False):
        return _Strips(n, dtype, device)


def _rbf(gram: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """The centered Gram matrix of exp(-distance^2 / (2 sigma^2)) with zeroed diagonal, (n, n), and
    its diagonal, (n,), from that of the linear kernel; sigma = bandwidth * median distance."""
    norms = gram.diagonal()
    squared = squared_distances(gram, norms, norms).fill_diagonal_(0)
    sigma = bandwidth * median_distance(squared)
    k = wide(torch.exp(squared / (-2 * sigma**2)))
    k = k - k.mean(0)
    k = k - k.mean(1, keepdim=True)
    diagonal = k.diagonal().clone()
    return k.fill_diagonal_(0), diagonal
