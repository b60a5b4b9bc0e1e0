"""`minibatch`: unbiased HSIC of each batch, averaged over batches (Nguyen et al. 2021).

Whole Gram matrices of one batch are there at a time, so that memory does not grow with the number
of examples. They are made of centered features, to scale, in the features' own precision (float32
for half precision). Sums over pairs of examples are in float64, and in the unit of the scale: each
process has its own, from the first batch that it sees in which the layer varies.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from memtool.progress import Advance, unseen
from memtool.similarity.hsic import (
    GROUPS,
    Hsic,
    beyond_rounding,
    hsic_from_sums,
    row_products,
    wide,
)
from memtool.similarity.rbf import rbf
from memtool.similarity.recorder import (
    Batch,
    PairSums,
    Recorder,
    Visit,
    mean_of,
    type_of_mean,
)
from memtool.similarity.settings import Estimator

STRIPS = 4  # of a symmetric matrix: 10 of 16 parts are computed, in products still large
CHUNK = 2048  # features at a time: what is centered is multiplied while it is in the cache


class MinibatchRecorder(Recorder):
    """State: `sums`, (1 + groups, layers), of each layer's HSIC with itself times the size of the
    batch, over all batches and over those of each group; `biased`, the same by `exact`, with which
    rounding is compared; `batches`, (groups,), how many there are.

    With `sigma`, (layers,), the kernel is rbf.
    """

    def __init__(
        self, layers: Sequence[Hashable], device: torch.device, sigma: Tensor | None = None
    ) -> None:
        super().__init__(layers, device)
        self.sigma = sigma
        for name in ("sums", "biased"):
            self.state[name] = self.zeros(1 + GROUPS, len(layers))
        self.state["batches"] = self.zeros(GROUPS)

    def _opened(self, visit: Visit) -> "GramBatch":
        return GramBatch(self, visit)

    def sums_with(self, other: Recorder, pairs: Sequence[tuple[int, int]]) -> "MinibatchSums":
        assert isinstance(other, MinibatchRecorder)
        return MinibatchSums(self, other, pairs)


class GramBatch(Batch):
    """The Gram matrices of all layers for one batch.

    When it is finished, inner products of the rows of `vectors`, (layers, k) float64, are the S of
    two layers, and `row_sums`, (layers, size) float64, are K° 1.
    """

    vectors: Tensor
    row_sums: Tensor

    recorder: MinibatchRecorder

    def __init__(self, recorder: MinibatchRecorder, visit: Visit) -> None:
        super().__init__(recorder, visit)
        self._entries = torch.empty(0)  # (layers, k), k entries of each Gram matrix

    def _record(self, i: int, x: Tensor) -> None:
        if self.recorder.sigma is None:
            self._record_linear(i, x)
        else:
            self._record_rbf(i, x, self.recorder.sigma[i])

    def _record_linear(self, i: int, x: Tensor) -> None:
        # What can be done for all layers at once is left for `finish`.
        type_ = self._entries.dtype if self._entries.numel() else type_of_mean(x)
        strips = _strips(len(x), x.device)
        gram = self._gram(i, strips.size, type_, x.device)
        self.recorder.set_scale(i, self._centered_chunks(i, x))  # by all features
        for number, centered in enumerate(self._centered_chunks(i, x)):
            centered = self.recorder.to_scale(i, centered)
            strips.add(gram, centered.to(type_), first=number == 0)

    def _centered_chunks(self, i: int, x: Tensor) -> Iterator[Tensor]:
        """The features of a layer relative to their mean, (n, CHUNK) at a time, in memory that the
        next ones use again: all of them would take as much as the widest layer does."""
        for chunk in x.split(CHUNK, dim=1):
            mean = mean_of(chunk)
            centered = self.recorder.centered(chunk, mean)
            self.recorder.judge(i, centered, mean)
            yield centered

    def _record_rbf(self, i: int, x: Tensor, sigma: Tensor) -> None:
        mean = mean_of(x)
        x = self.recorder.centered(x, mean)
        self.recorder.judge(i, x, mean)
        self.recorder.set_scale(i, [x])
        x = self.recorder.to_scale(i, x)
        norms = torch.linalg.vector_norm(x, dim=1).square()
        gram = wide(rbf(x, x, norms, norms, sigma * self.recorder.scale(i))).fill_diagonal_(0)
        self._gram(i, gram.numel(), gram.dtype, x.device).copy_(gram.flatten())

    def _gram(self, i: int, size: int, type_: torch.dtype, device: torch.device) -> Tensor:
        """Where the entries of a layer's Gram matrix go, (size,)."""
        if not self._entries.numel():
            layers = len(self.recorder.index)
            self._entries = torch.empty(layers, size, dtype=type_, device=device)
        return self._entries[i]

    def finish(self) -> None:
        entries, n = self._entries, self.visit.size
        del self._entries
        if self.recorder.sigma is None:
            strips = _strips(n, entries.device)
            entries = self.recorder.in_units(wide(entries))
            self.row_sums = strips.row_sums(entries)
            self.vectors = strips.weigh(entries)
        else:
            self.row_sums = entries.view(-1, n, n).sum(2)
            self.vectors = entries
        state = self.recorder.state
        sums = {Estimator.unbiased: state["sums"], Estimator.exact: state["biased"]}
        _add(sums, self, self, row_products)
        state["batches"][self.visit.group] += 1


class MinibatchSums(PairSums):
    """State: `sums`, (1 + groups, pairs), as those of the recorders."""

    def __init__(
        self, x: MinibatchRecorder, y: MinibatchRecorder, pairs: Sequence[tuple[int, int]]
    ) -> None:
        super().__init__(x, y, pairs)
        self.state = {"sums": x.zeros(1 + GROUPS, len(pairs))}

    def add(self, x: Batch, y: Batch) -> None:
        assert isinstance(x, GramBatch) and isinstance(y, GramBatch)
        _add({Estimator.unbiased: self.state["sums"]}, x, y, self.products)

    def hsic(self, advance: Advance = unseen) -> Hsic:
        xx, yy = (self._own(side.state) for side in (self.x, self.y))
        advance(len(self.pairs))
        return self.table(self._replicates(self.state["sums"]), xx, yy)

    def permuted(self) -> Tensor:
        return self.x.zeros(len(self.pairs))  # in each batch, as the formula is that of `unbiased`

    def _own(self, state: dict[str, Tensor]) -> Tensor:
        """HSIC of a recorder's layers with themselves, (replicates, layers)."""
        own, biased = (self._replicates(state[name]) for name in ("sums", "biased"))
        return beyond_rounding(own, biased, own.dtype)

    def _replicates(self, sums: Tensor) -> Tensor:
        """The sums over all batches, then over those without each group that there is."""
        groups = self.x.state["batches"].nonzero().flatten()
        left_out = groups if len(groups) > 1 else groups[:0]
        return torch.cat([sums[:1], sums[0] - sums[1 + left_out]])


def _add(
    sums: Mapping[Estimator, Tensor],
    x: GramBatch,
    y: GramBatch,
    products: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Add the HSIC of a batch by each estimator, times its size, to the sums over all batches and
    over its group."""
    s = products(x.vectors, y.vectors)
    d = products(x.row_sums, y.row_sums)
    t = products(x.row_sums.sum(1, keepdim=True), y.row_sums.sum(1, keepdim=True))
    for estimator, total in sums.items():
        value = x.visit.size * hsic_from_sums(estimator, s, d, t, x.visit.size)
        total[0] += value
        total[1 + x.visit.group] += value


class _Strips:
    """The half of a symmetric matrix (n, n) that is computed: vertical strips of its lower
    triangle, their entries in a vector of `size` elements."""

    def __init__(self, n: int, device: torch.device) -> None:
        step = max(32, -(-n // STRIPS))
        self._n = n
        self._columns = [(start, min(start + step, n)) for start in range(0, n, step)]
        weights, diagonal, at = [], [], 0
        for start, stop in self._columns:
            width = stop - start
            strip = torch.full((n - start, width), math.sqrt(2), dtype=torch.float64)
            strip[:width] = 1
            strip.diagonal().zero_()
            weights.append(strip.flatten())
            diagonal.append(torch.arange(width) * (width + 1) + at)
            at += strip.numel()
        weight_type = torch.float32 if device.type == "mps" else torch.float64
        self._weights = torch.cat(weights).to(device, weight_type)
        self._diagonal = torch.cat(diagonal).to(device)

    @property
    def size(self) -> int:
        return len(self._weights)

    def _views(self, vectors: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """Of each strip its first and last column and its entries, (..., n - start, width)."""
        at = 0
        for start, stop in self._columns:
            size = (self._n - start) * (stop - start)
            shape = *vectors.shape[:-1], self._n - start, stop - start
            yield start, stop, vectors[..., at : at + size].view(shape)
            at += size

    def add(self, vector: Tensor, x: Tensor, first: bool) -> None:
        """Add X X^T of centered features (n, p) to `vector`, or set it, if it is the `first`."""
        for start, stop, strip in self._views(vector):
            rows, columns = x[start:], x[start:stop].T
            if first:
                torch.mm(rows, columns, out=strip)
            else:
                torch.addmm(strip, rows, columns, out=strip)

    def row_sums(self, vectors: Tensor) -> Tensor:
        """The sums of the rows of K°, (m, n), of the m matrices in `vectors` (m, size)."""
        sums = -vectors[:, self._diagonal]
        for start, stop, strip in self._views(vectors):
            sums[:, start:] += strip.sum(2)
            sums[:, start:stop] += strip[:, stop - start :].sum(1)
        return sums

    def weigh(self, vectors: Tensor) -> Tensor:
        """The vectors (m, size), in place, so that their inner products are those of the matrices
        without diagonals: an entry that stands for two times sqrt 2, one of the diagonal 0."""
        return vectors.mul_(self._weights)


@lru_cache(maxsize=4)
def _strips(n: int, device: torch.device) -> _Strips:
    with torch.inference_mode(False):
        return _Strips(n, device)
