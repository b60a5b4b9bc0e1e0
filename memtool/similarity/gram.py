"""Statistics of one network's layers."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.similarity.settings import Estimator, Kernel

T = TypeVar("T")


MINIMUM = 4  # examples that the unbiased estimator needs


GROUPS = 10  # of batches, which the standard error leaves out one at a time


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
