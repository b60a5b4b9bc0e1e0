"""HSIC in feature space: (p, q) covariances of features in place of (n, n) Gram matrices.

With the letters of `gram`, for the linear kernel and features X (n, p) and Y (n, q),

    <Kc, Lc> = S + D = |Xc^T Yc|^2    (Kornblith et al. 2019, Eq. 3),

which takes n p q products where Gram matrices take n^2 (p + q) / 2: fewer where layers have fewer
features than there are examples.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from memtool.similarity.gram import GROUPS, Statistics, hsic, wide
from memtool.similarity.settings import Estimator

PART = 2**17  # elements of a covariance at a time
# What it takes to add up an element of a tile, in float64 in several sums, and an element of the
# covariances of all groups of batches; in products of features, as measured on two processors.
TILE, COVARIANCE = 800, 4000


def is_cheaper(n: int, layers: Iterable[int], pairs: Iterable[tuple[int, int]]) -> bool:
    """Whether feature space costs less than Gram matrices: for HSIC of n examples at each of the
    layers with itself and at the pairs, all told by their numbers of features."""
    layers = list(layers)
    gram = n * n / 2 * sum(p + TILE for p in layers)
    products = sum(p * q for p, q in pairs) + sum(p * p / 2 for p in layers)
    return (n + COVARIANCE) * products < gram


class Features(Statistics):
    """The features of all n examples, for `exact` and `unbiased`.

    Values of HSIC come as (r,): of all examples, then, if there is more than one, without each
    group of batches that there is.
    """

    def __init__(self, layers: Sequence[Hashable], estimator: Estimator) -> None:
        super().__init__(layers)
        self.estimator = estimator
        # By layer and batch: (size, p) and their squared norms (size,).
        self._kept: dict[int, dict[int, Tensor]] = {i: {} for i in self.layered}
        self._norms: dict[int, dict[int, Tensor]] = {i: {} for i in self.layered}
        self._own: dict[int, Tensor] = {}
        self._moments: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, batch: int, size: int, keep: bool = True, first: bool = False) -> None:
        """`keep`: it is the first time that any process sees the batch."""
        super().begin(batch, size)
        self._keep = keep

    def _see(self, i: int, x: Tensor) -> None:
        if not self._keep and i in self._origin:
            return
        x, norms = self._relative(i, x)
        if self._keep:
            self._kept[i][self.batch] = x.clone()
            self._norms[i][self.batch] = norms

    def finish(self) -> None:
        if self._keep:
            self._each({i: kept for i, kept in self._kept.items() if self.batch in kept})

    def share(self, add: Callable[[Tensor], Tensor], sizes: Sequence[int]) -> None:
        super().share(add, sizes)
        for i in self.layered:
            for batch, size in enumerate(sizes):
                p = len(self._origin[i])
                for stored, shape in ((self._kept[i], (size, p)), (self._norms[i], (size,))):
                    none = self._origin[i].new_zeros(() if batch in stored else shape)
                    stored[batch] = add(stored.get(batch, none))

    def hsic(self, i: int, other: "Features", j: int) -> Tensor:
        """HSIC of layer i with layer j of the other network, (r,)."""
        if len(self._origin[i]) > len(other._origin[j]):
            return other.hsic(j, self, i)  # the same to the last bit, whichever comes first
        symmetric = other is self and i == j
        if symmetric and i in self._own:  # the same for all networks that this is compared with
            return self._own[i]
        sizes, counted = self._groups
        n = counted @ sizes
        (means, d), (other_means, e) = self._centering(i), other._centering(j)
        # Of C_g = X_g^T Y_g, of the examples of group g: <C_g, C_h>, and m^T C_g w for all means.
        inner, bilinear = n.new_zeros(GROUPS, GROUPS), n.new_zeros(len(n), GROUPS)
        for left, right, times, c in self._covariances(i, other, j, symmetric):
            flat = c.flatten(1)
            inner += times * (flat @ flat.T)
            half = means[:, left] @ c
            bilinear += times * torch.einsum("grq,rq->rg", half, other_means[:, right])
        squares = (n * means.norm(dim=1) * other_means.norm(dim=1)).square()
        both = (counted * (counted @ inner - 2 * n[:, None] * bilinear)).sum(1) + squares
        diagonal, traces = (d * e).sum(0), d.sum(0) * e.sum(0)
        sums = zip(both - diagonal, diagonal, traces, n.tolist(), strict=True)
        values = torch.stack([hsic(self.estimator, s, d, t, int(m)) for s, d, t, m in sums])
        if symmetric:
            self._own[i] = values
        return values

    @cached_property
    def _groups(self) -> tuple[Tensor, Tensor]:
        """The number of examples of each group, (groups,), and which count, 0 or 1, (r, groups)."""
        sizes = self.ones().new_zeros(GROUPS)
        for batch, norms in self._norms[0].items():
            sizes[batch % GROUPS] += len(norms)
        left_out = 1 - torch.eye(GROUPS).to(sizes)[sizes > 0]
        counted = [torch.ones_like(left_out[:1]), *([left_out] if len(left_out) > 1 else [])]
        return sizes, torch.cat(counted)

    def _centering(self, i: int) -> tuple[Tensor, Tensor]:
        """Means of the features, (r, p), and diag Kc about them, (n, r), 0 where it does not
        count."""
        if i not in self._moments:
            sizes, counted = self._groups
            kept, norms = self._kept[i], self._norms[i]
            sums = sizes.new_zeros(GROUPS, len(self._origin[i]))
            for batch, x in kept.items():
                sums[batch % GROUPS] += wide(x).sum(0)
            means = counted @ sums / (counted @ sizes)[:, None]
            squares = means.square().sum(1)
            diagonals = [
                (wide(norms[b])[:, None] - 2 * wide(x @ means.T.to(x)) + squares)
                * counted[:, b % GROUPS]
                for b, x in kept.items()
            ]
            self._moments[i] = means, torch.cat(diagonals)
        return self._moments[i]

    def _covariances(
        self, i: int, other: "Features", j: int, symmetric: bool
    ) -> Iterator[tuple[slice, slice, int, Tensor]]:
        """X_g^T Y_g of all groups, (groups, some of p, some of q) at a time: these two, and how
        often the part counts. Of a symmetric one the upper half is enough."""
        p, q = len(self._origin[i]), len(other._origin[j])
        type_ = torch.promote_types(self._origin[i].dtype, other._origin[j].dtype)
        rows = max(1, PART // q)
        for start in range(0, p, rows):
            left, right = slice(start, min(start + rows, p)), slice(start if symmetric else 0, q)
            c = self._origin[i].new_zeros(
                GROUPS, left.stop - left.start, right.stop - right.start, dtype=type_
            )
            for batch, x in self._kept[i].items():
                y = other._kept[j][batch]
                c[batch % GROUPS].addmm_(x[:, left].T.to(type_), y[:, right].to(type_))
            c = wide(c)
            yield left, right, 2 if symmetric else 1, c
            if symmetric:
                yield left, left, -1, c[:, :, : left.stop - left.start]
