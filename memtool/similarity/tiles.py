"""`exact` and `unbiased` by Gram matrices of all n examples, tile by tile.

The features of a block of batches are kept. Each later batch gives a tile, the kept examples by its
own, which is used and thrown away: no n x n matrix is ever there. The blocks' passes together make
all tiles on and above the diagonal. Tiles are not centered; what centering takes are sums over
rows of the whole matrix,

    <Kc, Lc> = <K, L> - 2/n <r, s> + (1^T r) (1^T s) / n^2,    r = K 1, s = L 1,
    diag Kc = diag K - 2/n r + (1^T r) / n^2.

Tiles are made of features relative to the mean of the first batch, in the features' own precision
(float32 for half precision); all sums are in float64.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from memtool.progress import Advance, unseen
from memtool.similarity.hsic import (
    GROUPS,
    Hsic,
    beyond_rounding,
    hsic_from_sums,
    replicate_groups,
    row_products,
    wide,
)
from memtool.similarity.rbf import rbf
from memtool.similarity.recorder import Batch, OffsetRecorder, OffsetSums, Recorder, Visit
from memtool.similarity.settings import Estimator

Products = Callable[[Tensor, Tensor], Tensor]


class TileRecorder(OffsetRecorder):
    """State, off the diagonal of K: `products`, (1 + groups, layers), of each layer's <K, K> over
    all tiles and over those in which a group takes part; `row_sums`, (layers, n, groups), sums of
    each row over the columns of a group; and `diagonal`, (layers, n).

    With `sigma`, (layers,), the kernel is rbf. `capacity` is the most examples that a block has.
    """

    def __init__(
        self,
        layers: Sequence[Hashable],
        device: torch.device,
        batches: Sequence[tuple[int, int]],
        estimator: Estimator,
        capacity: int,
        sigma: Tensor | None = None,
    ) -> None:
        super().__init__(layers, device, batches, estimator)
        self.capacity, self.sigma = capacity, sigma
        self.block = _Block(range(0))
        self.state["products"] = self.zeros(1 + GROUPS, len(layers))
        self.state["row_sums"] = self.zeros(len(layers), self.n, GROUPS)
        self.state["diagonal"] = self.zeros(len(layers), self.n)

    def _opened(self, visit: Visit) -> "Tiles":
        if visit.block != self.block.batches:
            self.block = self.block.next(visit.block)
        return Tiles(self, visit)

    def sums_with(self, other: Recorder, pairs: Sequence[tuple[int, int]]) -> "TileSums":
        assert isinstance(other, TileRecorder)
        return TileSums(self, other, pairs)

    @cached_property
    def own_hsic(self) -> Tensor:
        """HSIC of each layer with itself, (replicates, layers), once the state is that of all
        examples."""
        estimators = self.estimator, Estimator.exact
        own, biased = _replicates(self, self, row_products, self.state, *estimators)
        return beyond_rounding(own, biased, own.dtype)

    def traces(self) -> Tensor:
        diagonal, rows = self.rows_without(None)
        return diagonal.sum(1) - rows.sum(1) / self.n

    def gram(self, i: int, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Entries of the Gram matrix of layer i from features and their squared norms."""
        if self.sigma is None:
            return x @ y.T
        return rbf(x, y, rows, columns, self.sigma[i] * self.scale(i))

    def diagonal(self, square: Tensor) -> Tensor:
        """The diagonal of a Gram matrix; that of rbf is 1, whatever rounding made of it."""
        return torch.ones_like(square[0]) if self.sigma is not None else square.diagonal().clone()

    def rows_without(self, group: int | None) -> tuple[Tensor, Tensor]:
        """diag K and K 1, (layers, m) each, of the m examples that are not in the group, once the
        state is that of all examples."""
        diagonal, rows = self.state["diagonal"], self._rows
        if group is None:
            return diagonal, rows
        rows = rows - self.state["row_sums"][:, :, group]
        kept = [
            slice(*bounds) for batch, bounds in enumerate(self.batches) if batch % GROUPS != group
        ]
        return (
            torch.cat([diagonal[:, part] for part in kept], 1),
            torch.cat([rows[:, part] for part in kept], 1),
        )

    @cached_property
    def _rows(self) -> Tensor:
        return self.state["row_sums"].sum(2) + self.state["diagonal"]


@dataclass
class _Block:
    """What is kept while a pass is made for a block of batches: their features and squared norms,
    (capacity, ...) for each layer. `kept` are the visits that they are from, in order."""

    batches: range
    features: dict[int, Tensor] = field(default_factory=dict)
    norms: dict[int, Tensor] = field(default_factory=dict)
    kept: list[Visit] = field(default_factory=list)

    def next(self, batches: range) -> "_Block":
        """An empty block that uses the same memory."""
        return _Block(batches, self.features, self.norms)

    @property
    def size(self) -> int:
        return sum(visit.size for visit in self.kept)

    def keep(self, i: int, x: Tensor, norms: Tensor, capacity: int) -> None:
        if i not in self.features:
            self.features[i] = x.new_empty(capacity, x.shape[1])
            self.norms[i] = norms.new_empty(capacity)
        place = slice(self.size, self.size + len(x))
        self.features[i][place] = x
        self.norms[i][place] = norms


class Tiles(Batch):
    """The tiles of a batch with all batches of the block that were seen, itself included."""

    recorder: TileRecorder

    def __init__(self, recorder: TileRecorder, visit: Visit) -> None:
        super().__init__(recorder, visit)
        self._kept = tuple(recorder.block.kept)
        self._start = recorder.block.size
        self._tiles: dict[int, Tensor] = {}  # (examples kept before, size)
        self._squares: dict[int, Tensor] = {}  # (size, size), zeros on the diagonal
        self._diagonals: dict[int, Tensor] = {}  # (size,)

    def _record(self, i: int, x: Tensor) -> None:
        recorder, block = self.recorder, self.recorder.block
        x = recorder.relative(i, x)
        recorder.set_scale(i, [x])
        x = recorder.to_scale(i, x)
        norms = torch.linalg.vector_norm(x, dim=1).square()
        if self._start:
            kept, kept_norms = block.features[i][: self._start], block.norms[i][: self._start]
            self._tiles[i] = recorder.gram(i, kept, x, kept_norms, norms)
        if self.visit.in_block:
            square = recorder.gram(i, x, x, norms, norms)
            self._diagonals[i] = recorder.diagonal(square)
            self._squares[i] = square.fill_diagonal_(0)
            block.keep(i, x, norms, recorder.capacity)

    def pieces(self) -> Iterator[tuple[Visit, Tensor]]:
        """Each kept batch and its tile with this one, (layers, its size, size) float64."""
        start = 0
        for visit in self._kept:
            stop = start + visit.size
            yield visit, self._wide({i: tile[start:stop] for i, tile in self._tiles.items()})
            start = stop
        if self.visit.in_block:
            yield self.visit, self._wide(self._squares)

    def _wide(self, parts: Mapping[int, Tensor]) -> Tensor:
        """Parts of the Gram matrices of all layers, (layers, ...) float64."""
        recorder = self.recorder
        entries = torch.stack([wide(parts[i]) for i in range(len(recorder.index))])
        return entries if recorder.sigma is not None else recorder.in_units(entries)

    def finish(self) -> None:
        state, mine = self.recorder.state, slice(self.visit.start, self.visit.stop)
        for other, piece in self.pieces():
            state["row_sums"][:, other.start : other.stop, self.visit.group] += piece.sum(2)
            if other is not self.visit:
                state["row_sums"][:, mine, other.group] += piece.sum(1)
            _add(state["products"], piece, piece, row_products, self.visit, other)
        if self.visit.in_block:
            state["diagonal"][:, mine] = self._wide(self._diagonals)
            self.recorder.block.kept.append(self.visit)


class TileSums(OffsetSums):
    """State: `products`, (1 + groups, pairs), as those of the recorders."""

    x: TileRecorder
    y: TileRecorder

    def __init__(self, x: TileRecorder, y: TileRecorder, pairs: Sequence[tuple[int, int]]) -> None:
        super().__init__(x, y, pairs)
        self.state = {"products": x.zeros(1 + GROUPS, len(pairs))}

    def add(self, x: Batch, y: Batch) -> None:
        assert isinstance(x, Tiles) and isinstance(y, Tiles)
        for (other, ours), (_, theirs) in zip(x.pieces(), y.pieces(), strict=True):
            _add(self.state["products"], ours, theirs, self.products, x.visit, other)

    def hsic(self, advance: Advance = unseen) -> Hsic:
        (xy,) = _replicates(self.x, self.y, self.products, self.state, self.x.estimator)
        advance(len(self.pairs))
        return self.table(xy, self.x.own_hsic, self.y.own_hsic)


def _replicates(
    x: TileRecorder,
    y: TileRecorder,
    products: Products,
    state: dict[str, Tensor],
    *estimators: Estimator,
) -> Tensor:
    """HSIC by each of the estimators of all examples, then of those without each group of batches,
    (estimators, replicates, ...)."""
    groups, sums = replicate_groups(len(x.batches)), state["products"]
    return torch.stack([_hsic(x, y, products, sums, group, estimators) for group in groups], 1)


def _add(
    sums: Tensor, x: Tensor, y: Tensor, products: Products, visit: Visit, other: Visit
) -> None:
    """Add what the tiles x and y (layers, m, n) of two batches contribute to <K, L>."""
    value = products(x.flatten(1), y.flatten(1))
    if other is not visit:
        value = value * 2  # the tile on the other side of the diagonal as well
    sums[0] += value
    for group in {visit.group, other.group}:
        sums[1 + group] += value


def _hsic(
    x: TileRecorder,
    y: TileRecorder,
    products: Products,
    sums: Tensor,
    group: int | None,
    estimators: Sequence[Estimator],
) -> Tensor:
    """HSIC by each of the estimators, without a group, from <K, L> off the diagonal: all that is
    left to do is to center."""
    (d, r), (e, s) = x.rows_without(group), y.rows_without(group)
    n = d.shape[1]
    off_diagonal = sums[0] if group is None else sums[0] - sums[1 + group]
    whole_r, whole_s = r.sum(1, keepdim=True), s.sum(1, keepdim=True)
    both = (
        off_diagonal + products(d, e) - 2 / n * products(r, s) + products(whole_r, whole_s) / n**2
    )
    d, e = d - 2 / n * r + whole_r / n**2, e - 2 / n * s + whole_s / n**2
    diagonal = products(d, e)
    traces = products(d.sum(1, keepdim=True), e.sum(1, keepdim=True))
    return torch.stack(
        [hsic_from_sums(one, both - diagonal, diagonal, traces, n) for one in estimators]
    )
