"""Centered Kernel Alignment. Tensors in, tensors out: no files, no models.

With HSIC as `gram` has it, for features X (n, p) and Y (n, q) of the same n examples at two layers
(Gupta, Saha, Rai 2024, after Kornblith et al. 2019),

    CKA = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)).

Nothing is ever added to the denominator: where it is 0, there is no CKA.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.similarity.alignment import Alignment, FeatureAlignment, grams
from memtool.similarity.feature_space import Features, is_cheaper
from memtool.similarity.gram import MINIMUM
from memtool.similarity.minibatch import BatchGrams
from memtool.similarity.settings import Estimator, Kernel


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
