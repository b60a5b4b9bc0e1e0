"""Centered Kernel Alignment. Tensors in, tensors out: no files, no models.

With HSIC as `gram` has it, for features X (n, p) and Y (n, q) of the same n examples at two layers
(Gupta, Saha, Rai 2024, after Kornblith et al. 2019),

    CKA = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)).

Nothing is ever added to the denominator: where it is 0, there is no CKA.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.choices import Estimator, Kernel
from memtool.covariance import Features, is_cheaper
from memtool.gram import GROUPS, MINIMUM, BatchGrams, Product, TileGrams, crossed, paired

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


def normalized(xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    """CKA from HSIC(X, Y), HSIC(X, X) and HSIC(Y, Y); NaN unless the last two are positive.

    In [0, 1] for `exact`. The other estimators are unbiased in each HSIC, so that of unrelated
    layers scatters around 0, and they cannot tell a self-similarity too small for them from none.
    """
    return torch.where((xx > 0) & (yy > 0), xy / (xx.sqrt() * yy.sqrt()), math.nan)


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


class CKA:
    """Streaming CKA of each of some layers with each of others, over batches of examples.

    `update` with the activations of every batch, then `compute`. `minibatch` needs memory for one
    batch; `exact` and `unbiased` keep all features, (n, p) of each layer, but no (n, n) matrix.
    With kernel `rbf`, sigma is `bandwidth` times the median distance: in each batch for
    `minibatch`, in the first batch for the others.
    """

    def __init__(
        self,
        estimator: Estimator | str = Estimator.minibatch,
        kernel: Kernel | str = Kernel.linear,
        bandwidth: float = 1.0,
    ) -> None:
        self.estimator = _settled(Estimator(estimator))
        self._settings = self.estimator, Kernel(kernel), bandwidth
        self._alignment: Alignment | None = None
        self.n = 0
        self._batches = 0
        self._uncounted = 0
        self._last: tuple[list[Tensor], list[Tensor]] | None = None

    def update(self, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> None:
        """Take in a batch: a tensor (n, ...) a layer, the same n examples in all.

        Batches may differ in size. One of fewer than four examples, of which unbiased HSIC knows
        nothing, is filled up with the last ones before it for `minibatch`, without counting these
        again. Raises MemtoolError if the numbers of examples differ.
        """
        n = _examples([*xs, *ys])
        self.n += n
        if self.estimator is not Estimator.minibatch:
            self._add(xs, ys, n)
            return
        new = self._uncounted + n
        need = max(new, MINIMUM)
        if need > n and self._last:
            xs, ys = _joined(self._last[0], xs), _joined(self._last[1], ys)
        if len(xs[0]) < need:
            self._uncounted = new
        else:
            self._add([x[-need:] for x in xs], [y[-need:] for y in ys], new)
            self._uncounted = 0
        tails = [[x[1 - MINIMUM :].detach().clone() for x in side] for side in (xs, ys)]
        self._last = tails[0], tails[1]

    def _add(self, xs: Sequence[Tensor], ys: Sequence[Tensor], weight: int) -> None:
        if self._alignment is None:
            left, right = (grams(range(len(side)), *self._settings) for side in (xs, ys))
            self._alignment = Alignment(left, right)
        for side, layers in ((self._alignment.x, xs), (self._alignment.y, ys)):
            side.begin(self._batches, len(layers[0]))
            if isinstance(side, BatchGrams):
                side.weight = weight
            for i, layer in enumerate(layers):
                side.see(i, layer)
        self._alignment.add()
        self._batches += 1

    def compute(self) -> Tensor:
        """CKA of all examples so far, float64 (layers, other layers); NaN where a layer is
        constant. Raises MemtoolError for fewer examples than the estimator needs."""
        return self._computed()[0]

    def standard_error(self) -> Tensor:
        """The jackknife's standard error of `compute`, of its shape; NaN for a single batch."""
        return self._computed()[1]

    def _computed(self) -> tuple[Tensor, Tensor]:
        check_examples(self.estimator, self.n)
        assert self._alignment is not None
        return self._alignment.compute()


def _settled(estimator: Estimator) -> Estimator:
    return Estimator.exact if estimator is Estimator.auto else estimator


def check_examples(estimator: Estimator, n: int) -> None:
    """Raise MemtoolError if n examples are too few."""
    least = 2 if estimator is Estimator.exact else MINIMUM
    if n < least:
        raise MemtoolError(
            f"CKA with estimator {estimator} needs {least} examples or more, not {n}"
        )


def _examples(layers: Sequence[Tensor]) -> int:
    numbers = {len(layer) for layer in layers}
    if len(numbers) != 1:
        raise MemtoolError(f"layers must have the same examples; their numbers are {numbers}")
    return numbers.pop()


def _joined(before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat([a, b.detach()]) for a, b in zip(before, after, strict=True)]


def cka(
    x: Tensor,
    y: Tensor,
    estimator: Estimator | str = Estimator.exact,
    kernel: Kernel | str = Kernel.linear,
    bandwidth: float = 1.0,
    batch_size: int = 1024,
) -> Tensor:
    """CKA of the features or activations x (n, ...) and y (n, ...) of the same n examples.

    A float64 scalar: in [0, 1] for `exact` (which `auto` means here), NaN if one of them is
    constant. `batch_size` matters to `minibatch`, and to the others with kernel `rbf`, whose
    median distance is that among the first `batch_size` examples.

    >>> cka(torch.randn(100, 5), torch.randn(100, 3, 4, 4), estimator="unbiased")

    Raises MemtoolError if n differs or is less than 2 for `exact`, 4 for the others.
    """
    n = _examples([x, y])
    stream = CKA(estimator, kernel, bandwidth)
    if Kernel(kernel) is Kernel.linear and stream.estimator is not Estimator.minibatch:
        widths = x[0].numel(), y[0].numel()
        if is_cheaper(n, widths, [widths]):
            return _in_feature_space(x, y, stream.estimator)
    for start, stop in batches(n, batch_size):
        stream.update([x[start:stop]], [y[start:stop]])
    return stream.compute()[0, 0]


def _in_feature_space(x: Tensor, y: Tensor, estimator: Estimator) -> Tensor:
    check_examples(estimator, len(x))
    sides = Features([0], estimator), Features([0], estimator)
    for side, activation in zip(sides, (x, y), strict=True):
        side.begin(0, len(activation))
        side.see(0, activation)
    return FeatureAlignment(*sides, [(0, 0)]).compute()[0][0]


def batches(n: int, size: int, multiple: int = 1) -> list[tuple[int, int]]:
    """(start, stop) of batches of n examples, of even sizes: at most `size`, but at least 4, as
    unbiased HSIC needs, if n is; a `multiple` of that many batches if n allows."""
    count = -(-n // size)
    count = -(-count // multiple) * multiple
    count = max(1, min(count, n // MINIMUM))
    return [(n * i // count, n * (i + 1) // count) for i in range(count)]
