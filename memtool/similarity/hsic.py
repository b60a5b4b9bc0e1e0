"""HSIC and CKA: the formulas, and the table of numbers that every estimator ends in.

K and L are the Gram matrices of the same n examples at two layers. H = I - 1 1^T / n centers them,
Kc = H K H, and K° is Kc with zeros on its diagonal. Every estimator of HSIC is a formula in

    S = <K°, L°>,   D = <K° 1, L° 1>,   T = (1^T K° 1) (1^T L° 1),

where <A, B> is the sum of the products of corresponding entries. The rows of Kc sum to 0, so that
K° 1 = -diag Kc, D = <diag Kc, diag Lc> and T = tr Kc tr Lc.

    exact      (S + D) / (n - 1)^2
               biased: Gretton et al. 2005, Eq. 9; the paper's estimator
    unbiased   (S - 2 D / (n - 2) + T / ((n - 1) (n - 2))) / (n (n - 3))
               Song et al. 2012, Eq. 5

For features X (n, p) and Y (n, q) of the same examples (Kornblith et al. 2019),

    CKA = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)).

Nothing is ever added to the denominator: where it is 0, there is no CKA. The unbiased HSIC of a
layer with itself is 0 if K° is u 1^T + 1 u^T for some u but for its diagonal: if a single example
differs from the others, or all pairs have the same distance. Rounding leaves more, or less.

Features that have nothing to do with each other have a CKA, too, as `exact` is biased. Let a random
permutation P shuffle the examples of one layer. E[P Lc P^T] is the same under all permutations, its
rows sum to 0 and its trace is tr Lc, so that it is tr Lc / (n - 1) H, whose diagonal is tr Lc / n:

    E[S + D] = E <Kc, P Lc P^T> = T / (n - 1),   E[D] = T / n,   E[S] = T / (n (n - 1)).

A formula that is linear in S, D and T has its expectation from these. A permutation changes no
layer's HSIC with itself, so that for `exact` (|A|^2 = <A, A>)

    E CKA(X, P Y) = tr Kc tr Lc / ((n - 1) |Kc| |Lc|),

and those of the unbiased formula cancel: its expectation is 0, in each batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from operator import eq
from typing import TypeVar

import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.similarity.settings import Estimator

MINIMUM = 4  # examples that the unbiased estimator needs
ROUNDING = 1e-4  # of CKA, as far as it may be from its value in float64
# What part of its S + D rounding may leave where the unbiased HSIC of a layer with itself is 0: of
# its terms, in units of their precision, twice what was measured in batches of up to 1,500 images;
# and of features and Gram matrices in float32, where it is squared.
OF_TERMS, OF_FEATURES = 512, 2.0**-40
FEW = 2**18  # numbers, up to which their products have room beside them
GROUPS = 10  # of batches, which the standard error leaves out one at a time

Number = TypeVar("Number", Tensor, Fraction)


def minimum(estimator: Estimator) -> int:
    """How many examples an estimator needs; `auto`, whichever it becomes."""
    match estimator:
        case Estimator.exact | Estimator.biased:
            return 2
        case Estimator.unbiased | Estimator.minibatch | Estimator.auto:
            return MINIMUM


def check_examples(estimator: Estimator, n: int) -> None:
    """Raise MemtoolError if n examples are too few for the estimator."""
    if n < (least := minimum(estimator)):
        raise MemtoolError(
            f"CKA with estimator {estimator} needs {least} examples or more, not {n}"
        )


def hsic_from_sums(estimator: Estimator, s: Tensor, d: Tensor, t: Tensor, n: int) -> Tensor:
    """HSIC from S, D and T of n examples; NaN for fewer than the estimator needs."""
    if n < minimum(estimator):
        return torch.full_like(s, math.nan)
    return _formula(estimator, s, d, t, n)


def beyond_rounding(
    own: Tensor, biased: Tensor, type_: torch.dtype, least: float = OF_FEATURES
) -> Tensor:
    """HSIC of layers with themselves, 0 where rounding may have left it of terms that cancel, which
    are of a type: what is not `least` of them. `biased`, of the same shape, tells their size: it is
    HSIC by `exact`, in which nothing cancels."""
    part = max(OF_TERMS * torch.finfo(type_).eps, least)
    return own.masked_fill(own <= part * biased, 0)


def permuted_hsic(estimator: Estimator, t: Tensor, n: int) -> Tensor:
    """HSIC in expectation when the examples of one layer are permuted, from T of n examples."""
    # In fractions, so that what cancels gives 0.
    s, d = Fraction(1, n * (n - 1)), Fraction(1, n)
    return t * float(_formula(estimator, s, d, Fraction(1), n))


def _formula(estimator: Estimator, s: Number, d: Number, t: Number, n: int) -> Number:
    """The formula of an estimator, linear in S, D and T, as `permuted_hsic` needs it.

    Raises ValueError for `auto`, which becomes another one before.
    """
    match estimator:
        case Estimator.exact | Estimator.biased:
            return (s + d) / (n - 1) ** 2
        case Estimator.unbiased | Estimator.minibatch:
            return (s - 2 * d / (n - 2) + t / ((n - 1) * (n - 2))) / (n * (n - 3))
        case Estimator.auto:
            raise ValueError("auto has no formula of its own")


def normalized(xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    """CKA from HSIC(X, Y), HSIC(X, X) and HSIC(Y, Y); NaN unless the last two are positive.

    In [0, 1] for `exact`. The other estimators are unbiased in each HSIC, so that CKA of unrelated
    layers scatters around 0, and they cannot tell a self-similarity too small for them from none.
    """
    return torch.where((xx > 0) & (yy > 0), xy / (xx.sqrt() * yy.sqrt()), math.nan)


@dataclass(frozen=True)
class Hsic:
    """HSIC of pairs of layers, float64, up to a factor common to a row: (replicates, pairs) each.

    The first row is of all examples. Each other row is of all but those of one group of batches;
    there are none if there is a single group. `permuted` is (pairs,), of all examples.
    """

    xy: Tensor
    xx: Tensor  # the first layer of each pair with itself
    yy: Tensor  # the second one with itself
    permuted: Tensor  # what xy is in expectation when the examples of one layer are permuted
    most: float = math.inf  # what CKA can be

    def cka(self) -> tuple[Tensor, Tensor]:
        """CKA of each pair and its standard error, (pairs,) each.

        CKA is NaN where a layer's HSIC with itself is not positive, as that of a constant layer,
        and where it is more than it can be by more than rounding: numbers were too small, or too
        large, for their type.
        The error is the jackknife's over groups of batches (Efron and Stein 1981), NaN without.
        """
        found = normalized(self.xy, self.xx, self.yy)
        found = found.where(found.abs() <= self.most + ROUNDING, math.nan)
        value, *left_out = found.clamp(max=self.most)
        if not left_out:
            return value, torch.full_like(value, math.nan)
        replicates = torch.stack(left_out)
        squares = (replicates - replicates.mean(0)).square().sum(0)
        return value, (squares * (1 - 1 / len(replicates))).sqrt()

    def null(self) -> Tensor:
        """CKA in expectation when the examples of one layer are permuted, (pairs,); NaN where there
        is no CKA."""
        return normalized(self.permuted, self.xx[0], self.yy[0])


class PairProducts:
    """Inner products of rows of one matrix with rows of another, for a list of pairs of rows.

    `rows` and `columns`, int64 (pairs,), are on the `device` of the matrices from the beginning:
    numbers of the host would be waited for each time.

    >>> a, b = torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> PairProducts([(0, 1), (1, 2)])(a, b)
    tensor([3., 6.])
    """

    def __init__(
        self, pairs: Sequence[tuple[int, int]], device: torch.device = torch.device("cpu")
    ) -> None:
        rows, columns = ([pair[side] for pair in pairs] for side in (0, 1))
        self.rows, self.columns = (torch.tensor(side, device=device) for side in (rows, columns))
        in_order = list(range(len(pairs)))
        self._are_in_order = rows == in_order, columns == in_order
        sizes = max(rows) + 1, max(columns) + 1
        # Of thousands of layers there are more pairs than memory has room for.
        self._is_every_pair = len(pairs) == sizes[0] * sizes[1] and all(
            map(eq, pairs, product(*map(range, sizes)))
        )

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """(l, k) and (m, k) to (pairs,)."""
        if self._is_every_pair:
            return (a @ b.T).flatten()
        rows, columns = self._are_in_order
        return row_products(_chosen(a, self.rows, rows), _chosen(b, self.columns, columns))


def _chosen(matrix: Tensor, rows: Tensor, are_in_order: bool) -> Tensor:
    is_whole = are_in_order and len(rows) == len(matrix)
    return matrix if is_whole else matrix.index_select(0, rows)


def row_products(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of corresponding rows: (l, k) and (l, k) to (l,)."""
    if a.numel() <= FEW:  # it takes a fifth of the time, and memory for all products
        products: Tensor = torch.linalg.vecdot(a, b)
        return products
    return torch.einsum("lk,lk->l", a, b)


def wide(x: Tensor) -> Tensor:
    """In float64, which Apple's MPS lacks."""
    return x if x.device.type == "mps" else x.double()


def replicate_groups(batches: int) -> list[int | None]:
    """Which group each row of an `Hsic` leaves out: none, then each that there is.

    >>> replicate_groups(3), replicate_groups(1), len(replicate_groups(1000))
    ([None, 0, 1, 2], [None], 11)
    """
    groups = min(batches, GROUPS)
    return [None, *(range(groups) if groups > 1 else [])]
