"""Gram matrices of layers, batch by batch, and the HSIC of two of them. Tensors in, tensors out.

Letters as in `cka`: K and L are the Gram matrices of the same n examples at two layers, Kc = H K H
with H = I - 1 1^T / n, and K° is Kc whose diagonal is zeroed. Every estimator of HSIC is a formula
on three numbers,

    S = <K°, L°>,   D = <diag Kc, diag Lc>,   tr Kc tr Lc;

    exact      (S + D) / (n - 1)^2
               biased; Gretton et al. 2005, Eq. 9; the paper's
    unbiased   (S - 2 D / (n - 2) + tr Kc tr Lc / ((n - 1) (n - 2))) / (n (n - 3))
               Song et al. 2012, Eq. 5, simplified by the rows of Kc, which sum to 0
    minibatch  the mean of `unbiased` over batches, each example counting alike
               Nguyen, Raghu, Kornblith 2021, Eq. 3

Gram matrices are made of features from which a mean was taken, in their own precision (float32 for
half precision); all sums over pairs of examples are in float64. Features of a size between 1e-15
and 1e15 neither vanish nor overflow in float32.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.choices import Estimator, Kernel

T = TypeVar("T")

MINIMUM = 4  # examples that the unbiased estimator needs
GROUPS = 10  # of batches, which the standard error leaves out one at a time
STRIPS = 4  # of a symmetric matrix: 10 of 16 parts are computed, in products still large
CHUNK = 2048  # features at a time: what is centered is multiplied while it is in the cache

# Inner products of the rows of (layers, k) and (other layers, k): of which with which.
Product = Callable[[Tensor, Tensor], Tensor]


def crossed(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of each row with each: (l, k), (m, k) to (l, m)."""
    return a @ b.T


def paired(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of corresponding rows: (l, k), (l, k) to (l,)."""
    return torch.einsum("lk,lk->l", a, b)


def chosen(rows: Sequence[int], others: Sequence[int]) -> Product:
    """Inner products of the `rows` of one with the `others` of the other, to (len(rows),)."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return paired(_rows(a, rows), _rows(b, others))

    return product


def _rows(matrix: Tensor, rows: Sequence[int]) -> Tensor:
    return matrix if list(rows) == list(range(len(matrix))) else matrix[list(rows)]


def hsic(estimator: Estimator, s: Tensor, d: Tensor, traces: Tensor, n: int) -> Tensor:
    """HSIC from S, D and tr Kc tr Lc of n examples, by the formula of `exact` or of `unbiased`.

    NaN for fewer examples than the estimator needs, 2 or 4.
    """
    if n < (2 if estimator is Estimator.exact else MINIMUM):
        return torch.full_like(s, math.nan)
    if estimator is Estimator.exact:
        return (s + d) / (n - 1) ** 2
    return (s - 2 * d / (n - 2) + traces / ((n - 1) * (n - 2))) / (n * (n - 3))


def wide(x: Tensor) -> Tensor:
    """In float64, which Apple's MPS lacks."""
    return x if x.device.type == "mps" else x.double()


def channels_last(activation: Tensor) -> bool:
    """Whether images lie in memory with their channels last."""
    return (
        activation.ndim == 4
        and not activation.is_contiguous()
        and activation.is_contiguous(memory_format=torch.channels_last)
    )


def features(activation: Tensor, last: bool = False) -> Tensor:
    """Activations (n, ...) as features (n, p), of a floating-point type.

    Copies nothing if the activation is contiguous or, with `last`, has its channels last: the
    order of features is not that of (c, h, w) then, which no Gram matrix depends on.
    """
    if activation.is_complex():
        activation = torch.view_as_real(activation)
    if not activation.is_floating_point():
        activation = activation.float()
    if last and activation.ndim == 4:
        activation = activation.permute(0, 2, 3, 1)
    return activation.reshape(len(activation), -1)


def squared_distances(gram: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Squared distances (n, m) from inner products (n, m) and squared norms (n,) and (m,)."""
    return (rows[:, None] + columns - 2 * gram).clamp_min_(0)


def median_distance(squared: Tensor) -> Tensor:
    """The median of the distances between two different examples, from squared ones (n, n)."""
    n = len(squared)
    apart = squared.flatten()[1:].view(n - 1, n + 1)[:, :-1]  # all but the diagonal
    return apart.flatten().median().sqrt()


class Statistics:
    """What CKA takes from the layers of one network, batch by batch: `begin` a batch, then `see`
    each layer's activation as it appears."""

    def __init__(
        self,
        layers: Sequence[Hashable],
        kernel: Kernel = Kernel.linear,
        bandwidth: float = 1.0,
    ) -> None:
        self.layers = {name: i for i, name in enumerate(layers)}
        self.layered = range(len(self.layers))
        self.kernel = kernel
        self.bandwidth = bandwidth
        self.batch = -1
        self.size = 0
        # (layers,): sum of squares about the mean, and what rounding may leave of a constant.
        self.spread = self.rounding = torch.empty(0)
        self._origin: dict[int, Tensor] = {}
        self._last: dict[int, bool] = {}
        self._scratch: dict[torch.dtype, Tensor] = {}

    def begin(self, batch: int, size: int, keep: bool = True, first: bool = False) -> None:
        """The activations seen from now on are those of the `size` examples of batch `batch`."""
        self.batch, self.size = batch, size

    def see(self, name: Hashable, activation: Tensor) -> None:
        """Take in the activation (size, ...) of a layer."""
        with torch.no_grad(), torch.autocast(activation.device.type, enabled=False):
            i = self.layers[name]
            if not self.spread.numel():
                zeros = torch.zeros(2, len(self.layers), device=activation.device)
                self.spread, self.rounding = wide(zeros)
            # In one order for all batches, whichever memory format a later one comes in.
            last = self._last.setdefault(i, channels_last(activation))
            self._see(i, features(activation, last))

    def _see(self, i: int, x: Tensor) -> None:
        raise NotImplementedError

    def _centered(self, x: Tensor, mean: Tensor) -> Tensor:
        """x minus its mean, (n, p), in memory that the next call uses again: fresh pages cost as
        much as the subtraction."""
        scratch = self._scratch.get(mean.dtype)
        if scratch is None or scratch.numel() < x.numel():
            scratch = self._scratch[mean.dtype] = mean.new_empty(x.numel())
        return torch.sub(x, mean, out=scratch[: x.numel()].view(x.shape))

    def _relative(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """x relative to the mean of the first batch ever seen, (n, p), so that an offset costs no
        digits, in memory that the next call uses again; and squared norms (n,)."""
        if i not in self._origin:
            self._origin[i] = _mean(x)
        x = self._centered(x, self._origin[i])
        norms = torch.linalg.vector_norm(x, dim=1).square()
        self._measure(i, wide(norms).sum(), self._origin[i].dot(self._origin[i]))
        return x, norms

    def _measure(self, i: int | slice, spread: Tensor, mean: Tensor) -> None:
        """Add to the spread of layer i, or of all; `mean` is the sum of squares of its mean."""
        self.spread[i] += spread
        # Rounding leaves a constant layer a spread of some eps^2, and no more.
        self.rounding[i] += wide(mean) * (self.size * (32 * torch.finfo(mean.dtype).eps) ** 2)

    def _each(self, values: Mapping[int, T]) -> list[T]:
        """The values of all layers, in their order."""
        for name, i in self.layers.items():
            if i not in values:
                raise MemtoolError(f"layer {name!r} is not called for every batch of images")
        return [values[i] for i in self.layered]

    def finish(self) -> None:
        """All sums with the present batch's Gram matrices are made, but those over rows."""

    def drop(self) -> None:
        """Free the memory of the present batch's Gram matrices."""

    def share(self, add: Callable[[Tensor], Tensor], sizes: Sequence[int]) -> None:
        """Bring the state together over processes, each of which saw some of the batches of
        `sizes`; `add` sums a tensor over all of them."""
        self.spread, self.rounding = add(self.spread), add(self.rounding)

    def ones(self) -> Tensor:
        """(layers, 1), where and in the type that sums are."""
        return torch.ones_like(self.spread)[:, None]

    def constant(self) -> Tensor:
        """Which layers give all examples the same features, (layers,) bool."""
        return self.spread <= self.rounding


def _type(x: Tensor) -> torch.dtype:
    """What the mean of features x, and they relative to it, are in: float32 or better."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _mean(x: Tensor) -> Tensor:
    """Mean of features (n, p) over the examples."""
    return x.mean(0, dtype=_type(x))


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


class TileGrams(Statistics):
    """Gram matrices of all n examples, tile by tile, for `exact` and `unbiased`.

    The features of a block of batches are kept; each later batch gives a tile, of the kept
    examples with its own, which is used and thrown away: no n x n matrix is ever there. Tiles are
    not centered; what centering them takes are sums over their rows, for

        <Kc, Lc> = <K, L> - 2/n <r, s> + (1^T r) (1^T s) / n^2,    r = K 1, s = L 1,
        diag Kc = diag K - 2/n r + (1^T r) / n^2.

    The bandwidth of `rbf` is set by the median distance in the first batch ever seen.
    """

    def __init__(
        self,
        layers: Sequence[Hashable],
        kernel: Kernel,
        bandwidth: float,
        estimator: Estimator,
        capacity: int = 0,
    ) -> None:
        """`capacity`: examples in a block, if known."""
        super().__init__(layers, kernel, bandwidth)
        self.estimator = estimator
        self._capacity = capacity
        self._sigma: dict[int, Tensor] = {}
        self._kept: dict[int, Tensor] = {}
        self._norms: dict[int, Tensor] = {}
        self.diagonals: dict[int, Tensor] = {}  # by batch, (layers, size)
        self.row_sums: dict[int, Tensor] = {}  # by batch, (layers, size, groups), off the diagonal
        self._bounds: list[tuple[int, int, int]] = []  # batch, start and stop of those kept

    def begin(self, batch: int, size: int, keep: bool = True, first: bool = False) -> None:
        """`keep`: the batch is one of the present block; `first`: it begins another."""
        super().begin(batch, size)
        if first:
            self._bounds = []
        self._keep = keep
        self._start = self._bounds[-1][2] if self._bounds else 0
        self._done = False
        self._own: list[tuple[set[int], Tensor]] = []
        self.drop()

    def drop(self) -> None:
        self._tiles: dict[int, Tensor] = {}  # (kept examples, size)
        self._squares: dict[int, tuple[Tensor, Tensor]] = {}  # (size, size) and its diagonal

    def _see(self, i: int, x: Tensor) -> None:
        x, norms = self._relative(i, x)
        if self.kernel is Kernel.rbf and i not in self._sigma:
            distance = median_distance(squared_distances(x @ x.T, norms, norms))
            self._sigma[i] = self.bandwidth * distance
        if self._start:
            kept = self._kept[i][: self._start]
            self._tiles[i] = self._gram(i, kept @ x.T, self._norms[i][: self._start], norms)
        if self._keep:
            square = self._gram(i, x @ x.T, norms, norms)
            if self.kernel is Kernel.rbf:
                square.fill_diagonal_(1)
            diagonal = square.diagonal().clone()
            self._squares[i] = square.fill_diagonal_(0), diagonal
            self._kept[i] = self._appended(self._kept.get(i), x)
            self._norms[i] = self._appended(self._norms.get(i), norms)

    def _gram(self, i: int, products: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        if self.kernel is Kernel.linear:
            return products
        return torch.exp(squared_distances(products, rows, columns) / (-2 * self._sigma[i] ** 2))

    def _appended(self, store: Tensor | None, new: Tensor) -> Tensor:
        """`store` with `new` behind the examples kept so far; moved where it is too small."""
        stop = self._start + len(new)
        if store is None or len(store) < stop:
            larger = new.new_empty(max(self._capacity, 2 * self._start, stop), *new.shape[1:])
            if store is not None:
                larger[: self._start] = store[: self._start]
            store = larger
        store[self._start : stop] = new
        return store

    def finish(self) -> None:
        """Add up the rows of the present batch's tiles; nothing the second time."""
        if self._done:
            return
        self._done = True
        for batch, tile in self._pieces():
            self._add_rows(batch, self.batch, tile.sum(2))
            if batch != self.batch:
                self._add_rows(self.batch, batch, tile.sum(1))
        if self._keep:
            diagonals = [wide(diagonal) for _, diagonal in self._each(self._squares)]
            self.diagonals[self.batch] = torch.stack(diagonals)
            self._bounds.append((self.batch, self._start, self._start + self.size))

    def _add_rows(self, rows: int, columns: int, sums: Tensor) -> None:
        if rows not in self.row_sums:
            self.row_sums[rows] = sums.new_zeros(*sums.shape, GROUPS)
        self.row_sums[rows][:, :, columns % GROUPS] += sums

    def share(self, add: Callable[[Tensor], Tensor], sizes: Sequence[int]) -> None:
        super().share(add, sizes)
        for batch, size in enumerate(sizes):
            for sums, shape in ((self.diagonals, (size,)), (self.row_sums, (size, GROUPS))):
                none = self.ones().new_zeros(len(self.layers), *shape)
                sums[batch] = add(sums.get(batch, none))

    def _pieces(self) -> Iterator[tuple[int, Tensor]]:
        """Of each kept batch its tile with the present one, (layers, its size, size)."""
        for batch, start, stop in self._bounds:
            if stop <= self._start:
                tiles = [wide(tile[start:stop]) for tile in self._each(self._tiles)]
                yield batch, torch.stack(tiles)
        if self._keep:
            yield (
                self.batch,
                torch.stack([wide(square) for square, _ in self._each(self._squares)]),
            )

    def contributions(
        self, other: "TileGrams", product: Product
    ) -> Iterable[tuple[set[int], Tensor]]:
        """What the present batch adds to the sums, and the groups of batches that it is from."""
        if other is not self:
            return self._products(zip(self._pieces(), other._pieces(), strict=True), product)
        if not self._own:  # the same for all networks that this one is compared with
            self._own = list(self._products(((piece, piece) for piece in self._pieces()), product))
        return self._own

    def _products(
        self, pieces: Iterable[tuple[tuple[int, Tensor], tuple[int, Tensor]]], product: Product
    ) -> Iterator[tuple[set[int], Tensor]]:
        for (batch, x), (_, y) in pieces:
            value = product(x.flatten(1), y.flatten(1))
            both = batch != self.batch  # the tile on the other side of the diagonal as well
            yield {batch % GROUPS, self.batch % GROUPS}, value * 2 if both else value

    def _rows(self, without: int | None) -> tuple[Tensor, Tensor]:
        """diag K and K 1, (layers, n), without the examples of a group."""
        kept = [batch for batch in sorted(self.diagonals) if batch % GROUPS != without]
        diagonals = torch.cat([self.diagonals[batch] for batch in kept], 1)
        sums = torch.cat([self.row_sums[batch] for batch in kept], 1)
        rows = sums.sum(2) + diagonals
        return diagonals, rows if without is None else rows - sums[:, :, without]

    def hsic(
        self, other: "TileGrams", product: Product, total: Tensor, without: int | None
    ) -> Tensor:
        """HSIC from the sums: all that is left is centering."""
        (d, r), (e, s) = self._rows(without), other._rows(without)
        n = d.shape[1]
        whole_r, whole_s = r.sum(1, keepdim=True), s.sum(1, keepdim=True)
        both = total + product(d, e) - 2 / n * product(r, s) + product(whole_r, whole_s) / n**2
        d, e = d - 2 / n * r + whole_r / n**2, e - 2 / n * s + whole_s / n**2
        diagonal = product(d, e)
        traces = product(d.sum(1, keepdim=True), e.sum(1, keepdim=True))
        return hsic(self.estimator, both - diagonal, diagonal, traces, n)
