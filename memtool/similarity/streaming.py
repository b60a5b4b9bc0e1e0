"""CKA of tensors, without files or models: `cka` of two, `CKA` of many that come in batches."""

import math
from collections.abc import Sequence
from enum import StrEnum
from itertools import accumulate, product
from numbers import Integral, Number, Real
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from memtool import MemtoolError
from memtool.device import Precision, tf32
from memtool.errors import last_line
from memtool.similarity.feature_space import FeatureRecorder, is_cheaper
from memtool.similarity.hsic import MINIMUM, check_examples
from memtool.similarity.minibatch import MinibatchRecorder
from memtool.similarity.planning import even_batches
from memtool.similarity.rbf import SAMPLE, median_distance, sample
from memtool.similarity.recorder import PairSums, Recorder, Visit, features
from memtool.similarity.settings import Estimator, Kernel
from memtool.similarity.tiles import TileRecorder

Choice = TypeVar("Choice", bound=StrEnum)
Layers = list[Tensor]  # activations (n, ...) of the same n examples
Activations = Tensor | ArrayLike  # what a caller may give for them


class CKA:
    """Streaming CKA of each of some layers with each of others, over batches of examples.

    Call `update` with the activations of every batch, then `compute`. `minibatch` needs memory for
    one batch; `exact` (which `auto` means here) and `unbiased` keep all features, but never a Gram
    matrix of all examples. With kernel `rbf`, sigma is `bandwidth` times the median distance
    between the examples: all of them, or 512 evenly spaced ones; `minibatch` takes the first 512.

    The first batch in which a layer varies sets the scale of its features. Where those of a later
    batch are larger by many orders of magnitude, about 1e9 or more, their squares may be beyond
    float32, and CKA is NaN: give larger batches, or float64.

    >>> x = torch.arange(60.0).view(20, 3) ** 2
    >>> stream = CKA("unbiased")
    >>> for batch in x.split(10):
    ...     stream.update([batch, batch.sqrt()], [batch])
    >>> stream.compute().shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        estimator: Estimator | str = Estimator.minibatch,
        kernel: Kernel | str = Kernel.linear,
        bandwidth: float = 1.0,
    ) -> None:
        _check_positive("bandwidth", bandwidth)
        estimator = _one_of(Estimator, estimator).canonical
        self.estimator = Estimator.exact if estimator is Estimator.auto else estimator
        self.kernel, self.bandwidth = _one_of(Kernel, kernel), bandwidth
        self.n = 0
        self._batches = 0
        self._sums: PairSums | None = None  # of minibatch, once sigma is known
        self._kept: list[tuple[Layers, Layers]] = []  # batches that are not in the sums
        self._widths: list[list[int]] = []  # features of each layer of either side

    @tf32(Precision.float32)
    def update(self, xs: Sequence[Activations], ys: Sequence[Activations]) -> None:
        """Take in a batch: for each layer a tensor (n, ...), or an array of NumPy, the same n
        examples in all.

        Batches may differ in size; an empty one changes nothing. Raises MemtoolError for a layer
        that is no numbers, if the numbers of examples differ, if layers are not those of the first
        batch, or if a batch has fewer than the four that unbiased HSIC needs, for `minibatch`.
        """
        xs, ys = _layers(xs), _layers(ys)
        n = _examples([*xs, *ys])
        widths = [[math.prod(layer.shape[1:]) for layer in side] for side in (xs, ys)]
        if widths != (self._widths or widths):
            raise MemtoolError(
                f"the layers of this batch have {widths} features, those of the first "
                f"{self._widths}; give the same layers in each"
            )
        if not n:
            return
        is_minibatch = self.estimator is Estimator.minibatch
        if is_minibatch and n < MINIMUM:
            raise MemtoolError(
                f"CKA with estimator minibatch needs {MINIMUM} examples or more in each batch, not "
                f"{n}; add them to another batch"
            )
        if is_minibatch and self.kernel is Kernel.linear and self._sums is None:
            self._sums = _minibatch_sums(xs, ys)
        if self._sums:
            _feed(self._sums, _visit(self._batches, xs), xs, ys)
        else:
            x, y = ([features(layer.detach()).clone() for layer in side] for side in (xs, ys))
            self._kept.append((x, y))
        self.n, self._batches, self._widths = self.n + n, self._batches + 1, widths
        if is_minibatch and self._kept and self.n >= SAMPLE:
            self._sums, self._kept = self._sums_of_kept(), []

    def compute(self) -> Tensor:
        """CKA of all examples so far, float64 (layers, other layers); NaN where a layer is
        constant, not finite or too large for its scale (see `CKA`). Raises MemtoolError for fewer
        examples than the estimator needs."""
        return self._computed()[0]

    def standard_error(self) -> Tensor:
        """The jackknife's standard error of `compute`, of its shape; NaN for a single batch."""
        return self._computed()[1]

    def null(self) -> Tensor:
        """What `compute` gives in expectation for unrelated layers, of its shape: those here, with
        the examples of one permuted. 0 but for `exact`; NaN where `compute` is."""
        return self._computed()[2]

    @tf32(Precision.float32)
    def _computed(self) -> tuple[Tensor, ...]:
        check_examples(self.estimator, self.n)
        if self._sums:
            sums = self._sums
        elif self.estimator is Estimator.minibatch:
            sums = self._sums_of_kept()
        else:
            sums = _whole_sums(self._kept, self.estimator, self.kernel, self.bandwidth)
        hsic = sums.hsic()
        shape = len(sums.x.index), len(sums.y.index)
        return tuple(each.view(shape) for each in (*hsic.cka(), hsic.null()))

    def _sums_of_kept(self) -> PairSums:
        """The sums of `minibatch` over the batches kept, with the sigma of their examples."""
        first = range(min(self.n, SAMPLE))
        sigmas = (self.bandwidth * sigma for sigma in _median_distances(self._kept, first))
        sums = _minibatch_sums(*self._kept[0], *sigmas)
        for number, (xs, ys) in enumerate(self._kept):
            _feed(sums, _visit(number, xs), xs, ys)
        return sums


@tf32(Precision.float32)
def cka(
    x: Activations,
    y: Activations,
    estimator: Estimator | str = Estimator.exact,
    kernel: Kernel | str = Kernel.linear,
    bandwidth: float = 1.0,
    batch_size: int = 1024,
) -> Tensor:
    """CKA of the features or activations x (n, ...) and y (n, ...) of the same n examples.

    A float64 scalar: in [0, 1] for `exact` (which `auto` means here), NaN if one of them is
    constant, not finite or too large for its scale (see `CKA`). `batch_size` matters to `minibatch`
    and to scales. Raises MemtoolError for what is no numbers, if n differs, or if it is less than 2
    for `exact` and 4 for the others.

    >>> x = torch.eye(6)
    >>> round(cka(x, 3 * x + 1).item(), 6), round(cka(x, x[:, :3]).item(), 6)
    (1.0, 0.745356)
    """
    stream = CKA(estimator, kernel, bandwidth)
    _check_positive("batch_size", batch_size, whole=True)
    x, y = _layers([x, y])
    n = _examples([x, y])
    check_examples(stream.estimator, n)
    batches = [([x[a:b]], [y[a:b]]) for a, b in even_batches(n, batch_size)]
    if stream.estimator is not Estimator.minibatch:
        sums = _whole_sums(batches, stream.estimator, stream.kernel, bandwidth)
        return sums.hsic().cka()[0][0]
    for xs, ys in batches:
        stream.update(xs, ys)
    return stream.compute()[0, 0]


def _one_of(choices: type[Choice], name: Choice | str) -> Choice:
    """The member of that name; raises MemtoolError if there is none."""
    if name not in list(choices):
        kind = choices.__name__.lower()
        raise MemtoolError(f"no {kind} {str(name)!r}; there are {', '.join(choices)}")
    return choices(name)


def _check_positive(name: str, value: object, whole: bool = False) -> None:
    if not isinstance(value, Integral if whole else Real) or not 0 < float(value) < math.inf:
        number = "whole number" if whole else "number"
        raise MemtoolError(f"{name} should be a positive {number}, not {value!r:.40}")


def _layers(side: Sequence[Activations]) -> Layers:
    """The layers in a list as tensors; raises MemtoolError for anything but a list with layers, and
    for a layer that is no numbers, (n, ...)."""
    if not isinstance(side, list | tuple) or not side:
        kind = f"{type(side).__name__}{' of none' if isinstance(side, list | tuple) else ''}"
        raise MemtoolError(f"give a list of tensors, one for each layer, not a {kind}")
    return [_tensor(layer) for layer in side]


def _tensor(layer: Activations) -> Tensor:
    wanted = "give tensors or arrays of numbers, (n, ...)"
    if _is_masked(layer):
        raise MemtoolError(f"a layer has masked values, which are no numbers; {wanted}")
    try:
        tensor = layer if isinstance(layer, Tensor) else _from_array(np.asarray(layer))
        if tensor.is_quantized:  # by channel, it cannot be divided into batches
            tensor = tensor.dequantize()
        is_usual = tensor.ndim > 0 and not tensor.is_nested and tensor.layout == torch.strided
        if is_usual:
            features(tensor[:1].detach())
    except Exception as error:  # of whatever offers itself as an array, or has an unusual type
        told = f"{type(layer).__name__}: {last_line(error)}"
        raise MemtoolError(f"a layer cannot be read as numbers ({told}); {wanted}") from error
    if tensor.is_meta or not is_usual:
        kind = f"shape {tuple(tensor.shape)}, {tensor.layout}, on {tensor.device}"
        if tensor.layout not in (torch.strided, torch.jagged):  # jagged are nested ones
            wanted = "give its .to_dense()"
        raise MemtoolError(f"a layer is a tensor of {kind}; {wanted}")
    return tensor


def _is_masked(layer: object) -> bool:
    """Whether some values are masked, in an array or in a list of them: NumPy would give what is
    under the mask. Lists of nothing but numbers, of which there may be millions, are told by their
    types."""
    if not isinstance(layer, list | tuple):
        return bool(np.ma.is_masked(layer))
    kinds = set(map(type, layer))
    return not all(issubclass(kind, Number) for kind in kinds) and any(map(_is_masked, layer))


def _from_array(array: NDArray[Any]) -> Tensor:
    """An array as a tensor: of strides, an order of bytes and a leave to write that PyTorch takes,
    copied if need be. Raises TypeError for a dtype that PyTorch lacks."""
    usual = np.require(array, array.dtype.newbyteorder("="), ("C", "W"))
    try:
        return torch.from_numpy(usual)
    except TypeError as error:  # which lists all that PyTorch has
        hint = ", so give its .astype(float) if these are numbers" if array.ndim else ""
        raise TypeError(f"PyTorch lacks dtype {array.dtype}{hint}") from error


def _examples(layers: Sequence[Tensor]) -> int:
    numbers = {len(layer) for layer in layers}
    if len(numbers) != 1:
        raise MemtoolError(f"layers must have the same examples; their numbers are {numbers}")
    return numbers.pop()


def _sums(x: Recorder, y: Recorder) -> PairSums:
    """Of each layer with each."""
    return x.sums_with(y, list(product(x.index.values(), y.index.values())))


def _minibatch_sums(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    sigma_x: Tensor | None = None,
    sigma_y: Tensor | None = None,
) -> PairSums:
    sides = (xs, sigma_x), (ys, sigma_y)
    return _sums(*(MinibatchRecorder(range(len(z)), z[0].device, sigma) for z, sigma in sides))


def _whole_sums(
    kept: Sequence[tuple[Layers, Layers]], estimator: Estimator, kernel: Kernel, bandwidth: float
) -> PairSums:
    """The sums of `exact` or `unbiased` over batches that are all there."""
    ends = list(accumulate(len(xs[0]) for xs, _ in kept))
    batches = list(zip([0, *ends], ends, strict=False))
    n, sides = ends[-1], tuple(zip(*kept, strict=True))
    widths = [[layer[0].numel() for layer in side[0]] for side in sides]
    run = [(range(len(xs)), xs[0].device, batches, estimator) for xs, *_ in sides]
    recorders: list[Recorder]
    if kernel is Kernel.linear and is_cheaper(n, [*widths[0], *widths[1]], product(*widths)):
        recorders = [FeatureRecorder(*of_side, range(len(batches))) for of_side in run]
    elif kernel is Kernel.linear:
        recorders = [TileRecorder(*of_side, n) for of_side in run]
    else:
        sigmas = (bandwidth * distance for distance in _median_distances(kept, sample(n)))
        recorders = [
            TileRecorder(*of_side, n, sigma) for of_side, sigma in zip(run, sigmas, strict=True)
        ]
    sums = _sums(*recorders)
    for number, (xs, ys) in enumerate(kept):
        _feed(sums, Visit(number, *batches[number], range(len(kept))), xs, ys)
    return sums


def _visit(number: int, xs: Sequence[Tensor]) -> Visit:
    """That of a batch of `minibatch`, which keeps nothing of it."""
    return Visit(number, 0, len(xs[0]), range(0))


def _feed(sums: PairSums, visit: Visit, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> None:
    """Record a batch of both sides and add it to the sums."""
    with sums.x.batch(visit) as x, sums.y.batch(visit) as y:
        for batch, layers in ((x, xs), (y, ys)):
            for i, layer in enumerate(layers):
                batch.record(i, layer)
    sums.add(x, y)


def _median_distances(
    kept: Sequence[tuple[Layers, Layers]], chosen: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The median distance between the chosen examples at each layer of either side."""
    x, y = (
        torch.stack(
            [
                median_distance(torch.cat([features(part) for part in layer])[chosen])
                for layer in zip(*side, strict=True)
            ]
        )
        for side in zip(*kept, strict=True)
    )
    return x, y
