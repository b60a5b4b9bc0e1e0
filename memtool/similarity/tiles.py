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

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from memtool.similarity.gram import (
    GROUPS,
    Product,
    Statistics,
    hsic,
    median_distance,
    squared_distances,
    wide,
)
from memtool.similarity.settings import Estimator, Kernel


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
