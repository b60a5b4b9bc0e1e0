"""CKA of the layers of two networks."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from memtool.similarity.feature_space import Features
from memtool.similarity.gram import GROUPS, Product, crossed, paired
from memtool.similarity.hsic import normalized
from memtool.similarity.minibatch import BatchGrams
from memtool.similarity.settings import Estimator, Kernel
from memtool.similarity.tiles import TileGrams

Grams = BatchGrams | TileGrams


def grams(
    layers: Sequence[Hashable],
    estimator: Estimator,
    kernel: Kernel = Kernel.linear,
    bandwidth: float = 1.0,
    capacity: int = 0,
) -> Grams:
    """What takes in the activations of a network's layers for `estimator`."""
    if estimator is Estimator.minibatch:
        return BatchGrams(layers, kernel, bandwidth)
    return TileGrams(layers, kernel, bandwidth, estimator, capacity)


class Alignment:
    """CKA of layers of one network with layers of another, as both see the same batches.

    `product` says which layers are compared, each with each unless told: `crossed` or `chosen`.
    """

    def __init__(self, x: Any, y: Any, product: Product = crossed) -> None:
        self.x, self.y = x, y
        self._product = product
        parts: list[tuple[Any, Any, Product]]
        parts = [(x, y, product), (x, x, paired), (y, y, paired)]
        self._parts = parts
        # Of each part the sum over all batches, then over those in which a group takes part.
        self._sums: list[Tensor] = []
        self._groups: set[int] = set()

    def add(self) -> None:
        """Take in the batch that both sides have seen."""
        if not self._sums:
            self._sums = [
                torch.stack([0 * product(x.ones(), y.ones())] * (1 + GROUPS))
                for x, y, product in self._parts
            ]
        for sums, (x, y, product) in zip(self._sums, self._parts, strict=True):
            for groups, value in x.contributions(y, product):
                sums[0] += value
                for group in groups:
                    sums[1 + group] += value
                self._groups |= groups
        self.x.finish()
        self.y.finish()
        self.x.drop()  # that of y may be compared with others

    def share(self, add: Callable[[Tensor], Tensor], batches: int) -> None:
        """Bring the sums together over processes, which saw `batches` in all; `add` as there."""
        self._sums = [add(sums) for sums in self._sums]
        self._groups = {batch % GROUPS for batch in range(batches)}

    def compute(self) -> tuple[Tensor, Tensor]:
        """CKA and its standard error, float64 of the shape that `product` gives.

        The error is the jackknife's over up to 10 groups of batches, each left out in turn. Both
        are NaN where a layer is constant, or its HSIC with itself is not positive.
        """
        left_out = sorted(self._groups) if len(self._groups) > 1 else []
        return _jackknifed(torch.stack([self._cka(group) for group in [None, *left_out]]))

    def _cka(self, without: int | None) -> Tensor:
        xy, xx, yy = (
            x.hsic(y, product, sums[0] if without is None else sums[0] - sums[1 + without], without)
            for sums, (x, y, product) in zip(self._sums, self._parts, strict=True)
        )
        xx = xx.masked_fill(self.x.constant(), math.nan)
        yy = yy.masked_fill(self.y.constant(), math.nan)
        each_xx = self._product(xx[:, None], self.y.ones())
        each_yy = self._product(self.x.ones(), yy[:, None])
        return normalized(xy, each_xx, each_yy)


class FeatureAlignment:
    """CKA of pairs of layers, `cells`, one of each network, both of which keep their features."""

    def __init__(self, x: Features, y: Features, cells: Sequence[tuple[int, int]]) -> None:
        self.x, self.y, self._cells = x, y, cells

    def add(self) -> None:
        """Check that both sides have seen the batch, in which nothing is left to do."""
        self.x.finish()
        self.y.finish()

    def share(self, add: Callable[[Tensor], Tensor], batches: int) -> None:
        """Bring the sums together over processes: there are none."""

    def compute(self, advance: Callable[[], None] = lambda: None) -> tuple[Tensor, Tensor]:
        """CKA and its standard error, float64 (cells,), as `Alignment.compute` has them; `advance`
        is called after each cell."""
        x, y, values = self.x, self.y, []
        with torch.no_grad(), torch.autocast(x.ones().device.type, enabled=False):
            for i, j in self._cells:
                xx, yy = (
                    side.hsic(k, side, k).masked_fill(side.constant()[k], math.nan)
                    for side, k in ((x, i), (y, j))
                )
                values.append(normalized(x.hsic(i, y, j), xx, yy))
                advance()
        return _jackknifed(torch.stack(values, 1))


def _jackknifed(values: Tensor) -> tuple[Tensor, Tensor]:
    """CKA of all examples, and the standard error from what it is without each group: the first of
    `values`, and the others."""
    value, left_out = values[0], values[1:]
    if not len(left_out):
        return value, torch.full_like(value, math.nan)
    squares = (left_out - left_out.mean(0)).square().sum(0)
    return value, (squares * (1 - 1 / len(left_out))).sqrt()
