"""`exact` and `unbiased` in feature space: (p, q) covariances in place of (n, n) Gram matrices.

With the letters of `hsic`, for the linear kernel and features X (n, p) and Y (n, q) whose means are
m (p,) and w (q,),

    <Kc, Lc> = S + D = |Xc^T Yc|^2,   Xc = X - 1 m^T,   Yc = Y - 1 w^T

(Kornblith et al. 2019, Eq. 3). This takes n p q products where Gram matrices take n^2 (p + q) / 2:
fewer where layers have fewer features than there are examples.

The standard error needs the same without each group of batches. Let X_g and Y_g be the features of
group g, C_g = X_g^T Y_g, and R the groups that count, n examples with the means m and w. Then
Xc^T Yc is the sum of C_g over g in R, less n m w^T, so that

    |Xc^T Yc|^2 = sum_gh <C_g, C_h> - 2 n sum_g m^T C_g w + n^2 |m|^2 |w|^2,   g and h in R:

the matrix of <C_g, C_h> is computed once for all R, and m^T C_g w takes a product of a matrix with
a vector for each. Of C, a part at a time is enough. The diagonal of Kc is |x|^2 - 2 x^T m + |m|^2.
"""

from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
    wide,
)
from memtool.similarity.recorder import (
    Batch,
    OffsetRecorder,
    OffsetSums,
    Recorder,
    Visit,
    magnitude,
    scale_of,
    scaled,
)
from memtool.similarity.settings import Estimator

PART = 2**17  # elements of C at a time
# What part of the terms of an HSIC has to be left when they cancel, so that rounding of products
# in float32, and in float64, is less than 1e-4 of CKA.
IN_FLOAT32, IN_FLOAT64 = 1 / 16, 2.0**-33
# What it takes to add up an element of a tile, in float64 in several sums, and an element of the
# covariances of all groups; in products of features, as measured on two processors.
TILE, COVARIANCE = 800, 4000


def is_cheaper(n: int, layers: Iterable[int], pairs: Iterable[tuple[int, int]]) -> bool:
    """Whether feature space costs less than Gram matrices: for HSIC of n examples at each of the
    layers with itself and at the pairs, all given by their numbers of features."""
    layers = list(layers)
    gram = n * n / 2 * sum(p + TILE for p in layers)
    products = sum(p * q for p, q in pairs) + sum(p * p / 2 for p in layers)
    return (n + COVARIANCE) * products < gram


class FeatureRecorder(OffsetRecorder):
    """State: `features i`, (n, p), for each layer i: relative to the mean of the first batch.

    `mine` are the batches whose features this process keeps; each batch is kept by one process.
    """

    def __init__(
        self,
        layers: Sequence[Hashable],
        device: torch.device,
        batches: Sequence[tuple[int, int]],
        estimator: Estimator,
        mine: Collection[int],
    ) -> None:
        super().__init__(layers, device, batches, estimator)
        self.missing = set(mine)
        self._layers: dict[int, LayerFeatures] = {}

    def _opened(self, visit: Visit) -> "FeatureBatch":
        return FeatureBatch(self, visit)

    def sums_with(self, other: Recorder, pairs: Sequence[tuple[int, int]]) -> "FeatureSums":
        assert isinstance(other, FeatureRecorder)
        return FeatureSums(self, other, pairs)

    def traces(self) -> Tensor:
        return torch.stack([self.layer(i).centering[1][:, 0].sum() for i in self.index.values()])

    def layer(self, i: int) -> "LayerFeatures":
        """The features of layer i, once all are there."""
        if i not in self._layers:
            features = self.state[f"features {i}"]
            largest = magnitude(features[slice(*part)] for part in self.batches)
            features = scaled(features, scale_of(largest))
            layer = LayerFeatures(features, self.batches, self.estimator, features.dtype)
            if layer.loses_digits():
                layer = replace(layer, type_=wide(features[:0]).dtype)
            self._layers[i] = layer
        return self._layers[i]


class FeatureBatch(Batch):
    """The features of a batch, which are kept at the first visit to it."""

    recorder: FeatureRecorder

    def _record(self, i: int, x: Tensor) -> None:
        recorder, keeps = self.recorder, self.visit.batch in self.recorder.missing
        if not keeps and f"features {i}" in recorder.state:
            return
        x = recorder.relative(i, x)
        features = recorder.state.setdefault(f"features {i}", x.new_zeros(recorder.n, x.shape[1]))
        if keeps:
            features[self.visit.start : self.visit.stop] = x

    def finish(self) -> None:
        self.recorder.missing.discard(self.visit.batch)


class FeatureSums(OffsetSums):
    """There is nothing to add up from batch to batch: all is computed of the kept features."""

    x: FeatureRecorder
    y: FeatureRecorder

    def __init__(
        self, x: FeatureRecorder, y: FeatureRecorder, pairs: Sequence[tuple[int, int]]
    ) -> None:
        super().__init__(x, y, pairs)
        self.state = {}

    def add(self, x: Batch, y: Batch) -> None:
        pass

    def hsic(self, advance: Advance = unseen) -> Hsic:
        with torch.no_grad(), torch.autocast(self.x.device.type, enabled=False):
            xy = []
            for i, j in self.pairs:
                xy.append(self.x.layer(i).hsic(self.y.layer(j)))
                advance()
            xx, yy = (
                torch.stack([side.layer(i).own_hsic for i in side.index.values()], 1)
                for side in (self.x, self.y)
            )
        return self.table(torch.stack(xy, 1), xx, yy)


@dataclass
class LayerFeatures:
    """The features of one layer for all examples, (n, p), and the type that their products are in.

    In the results, one value or row for each replicate: all examples, then those without each
    group of batches.
    """

    x: Tensor
    batches: Sequence[tuple[int, int]]
    estimator: Estimator
    type_: torch.dtype

    @property
    def width(self) -> int:
        return self.x.shape[1]

    def of_batches(self) -> Iterator[tuple[int, slice]]:
        """The group of each batch, and where its examples are."""
        for batch, bounds in enumerate(self.batches):
            yield batch % GROUPS, slice(*bounds)

    @cached_property
    def counts(self) -> tuple[Tensor, Tensor]:
        """How many examples each group has, (groups,); which groups count, 0 or 1, (r, groups)."""
        sizes = wide(torch.zeros(GROUPS, device=self.x.device))
        for group, part in self.of_batches():
            sizes[group] += part.stop - part.start
        replicates = replicate_groups(len(self.batches))
        counted = torch.ones(len(replicates), GROUPS).to(sizes)
        for row, left_out in enumerate(replicates):
            if left_out is not None:
                counted[row, left_out] = 0
        return sizes, counted

    @cached_property
    def centering(self) -> tuple[Tensor, Tensor]:
        """The mean of the features, (r, p); diag Kc, (n, r), 0 where an example does not count."""
        sizes, counted = self.counts
        sums = sizes.new_zeros(GROUPS, self.width)
        for group, part in self.of_batches():
            sums[group] += wide(self.x[part]).sum(0)
        means = counted @ sums / (counted @ sizes)[:, None]
        squares = means.square().sum(1)
        diagonals = []
        for group, part in self.of_batches():
            x = self.x[part].to(self.type_)
            norms = torch.linalg.vector_norm(x, dim=1).square()
            products = x @ means.T.to(self.type_)
            diagonals.append(
                (wide(norms)[:, None] - 2 * wide(products) + squares) * counted[:, group]
            )
        return means, torch.cat(diagonals)

    @cached_property
    def own_hsic(self) -> Tensor:
        """HSIC of the layer with itself, (r,)."""
        own, biased = self._own
        return beyond_rounding(own, biased, self.type_, IN_FLOAT64)

    @cached_property
    def _own(self) -> Tensor:
        """HSIC of the layer with itself by its estimator and by `exact`, (2, r)."""
        return self._hsic(self, self.estimator, Estimator.exact)

    def loses_digits(self) -> bool:
        """Whether so much of the terms of an HSIC cancels, as where a single example is far from
        all others, that rounding in float32 would be seen in CKA."""
        own, biased = self._own
        return bool((own < IN_FLOAT32 * biased).any())

    def hsic(self, other: "LayerFeatures") -> Tensor:
        """HSIC with another layer, (r,)."""
        if other is self:
            return self.own_hsic
        # In this order whichever network the narrow layer is of.
        narrow, broad = sorted((self, other), key=lambda layer: layer.width)
        return narrow._hsic(broad, self.estimator)[0]

    def _hsic(self, other: "LayerFeatures", *estimators: Estimator) -> Tensor:
        """By each of the estimators, (estimators, r)."""
        sizes, counted = self.counts
        n = counted @ sizes
        (m, d), (w, e) = self.centering, other.centering
        inner, bilinear = n.new_zeros(GROUPS, GROUPS), n.new_zeros(len(n), GROUPS)
        for rows, columns, multiplicity, c in self._covariances(other):
            flat = c.flatten(1)
            inner += multiplicity * (flat @ flat.T)  # <C_g, C_h>
            mc = m[:, rows] @ c
            bilinear += multiplicity * torch.einsum("grq,rq->rg", mc, w[:, columns])  # m^T C_g w
        squares = (n * m.norm(dim=1) * w.norm(dim=1)).square()
        both = (counted * (counted @ inner - 2 * n[:, None] * bilinear)).sum(1) + squares
        diagonal, traces = (d * e).sum(0), d.sum(0) * e.sum(0)
        sums = list(zip(both - diagonal, diagonal, traces, map(int, n.tolist()), strict=True))
        return torch.stack(
            [
                torch.stack([hsic_from_sums(estimator, *replicate) for replicate in sums])
                for estimator in estimators
            ]
        )

    def _covariances(self, other: "LayerFeatures") -> Iterator[tuple[slice, slice, int, Tensor]]:
        """C_g of all groups, in parts (groups, rows, columns) float64: which rows, which columns,
        how often the part is to be counted. Of the symmetric C of a layer with itself, the upper
        triangle is computed, in parts that reach beyond the diagonal: those are taken off again."""
        p, q = self.width, other.width
        type_ = torch.promote_types(self.type_, other.type_)
        step = max(1, PART // max(q, 1))
        for start in range(0, p, step):
            rows = slice(start, min(start + step, p))
            columns = slice(start if other is self else 0, q)
            c = self.x.new_zeros(GROUPS, rows.stop - start, q - columns.start, dtype=type_)
            for group, part in self.of_batches():
                c[group].addmm_(self.x[part, rows].T.to(type_), other.x[part, columns].to(type_))
            c = wide(c)
            yield rows, columns, 2 if other is self else 1, c
            if other is self:
                yield rows, rows, -1, c[:, :, : rows.stop - start]
