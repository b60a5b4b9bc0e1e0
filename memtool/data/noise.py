"""Label noise: labels in, labels out. Every kind of noise is a transition matrix T[true, given].

An example is *redrawn* if its given label is drawn from row T[true]; it is *mislabelled* if the
given label then differs from the true one. Uniform noise (that of the paper) may draw the true
class again, so that fewer than ratio * n examples are mislabelled; symmetric noise never does.

Another kind of noise is a member of `NoiseKind` and a case of `transition_matrix`.
"""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.data.listing import Labels

Matrix = NDArray[np.float64]
ROUNDING = 0.01  # by which a row of a transition matrix, printed with 2 to 4 decimals, may miss 1


class NoiseKind(StrEnum):
    """How a redrawn example gets its label."""

    uniform = "uniform"  # any class, the true one included (Zhang et al. 2017; the paper)
    symmetric = "symmetric"  # any other class (cleanlab's symmetric noise)
    pairflip = "pairflip"  # the next class, the last one wrapping to the first (Han et al. 2018)
    matrix = "matrix"  # row T[true] of a transition matrix


def transition_matrix(kind: NoiseKind, classes: int) -> Matrix:
    """T[true, given], (classes, classes): from which distribution a redrawn label comes. Each row
    sums to 1.

    Raises MemtoolError for symmetric and pairflip noise with fewer than two classes, and
    ValueError for `NoiseKind.matrix`, which has no matrix of its own.

    >>> transition_matrix(NoiseKind.symmetric, 3)
    array([[0. , 0.5, 0.5],
           [0.5, 0. , 0.5],
           [0.5, 0.5, 0. ]])
    """
    if kind is NoiseKind.uniform:
        return np.full((classes, classes), 1 / classes)
    if classes < 2:
        raise MemtoolError(f"{kind} noise needs two classes or more, not {classes}")
    if kind is NoiseKind.symmetric:
        return (1 - np.eye(classes)) / (classes - 1)
    if kind is NoiseKind.pairflip:
        return np.roll(np.eye(classes), 1, axis=1)
    raise ValueError(f"{kind} noise comes with its own matrix")


def checked_transition_matrix(matrix: Matrix, classes: int) -> Matrix:
    """`matrix` with rows that sum to 1 where rounding has made it some hundredth more or less.

    Raises MemtoolError unless it is (classes, classes), non-negative, and each row sums to 1 within
    `ROUNDING`.

    >>> checked_transition_matrix(np.array([[0.99, 0.0], [0.5, 0.5]]), 2)
    array([[1. , 0. ],
           [0.5, 0.5]])
    """
    if matrix.shape != (classes, classes):
        raise MemtoolError(
            f"a {classes} x {classes} matrix is needed, not {matrix.shape}: numbers alone, without "
            "a header or an index"
        )
    sums = matrix.sum(axis=1, keepdims=True)
    wrong = ~(matrix >= 0).all(axis=1) | ~(abs(sums[:, 0] - 1) <= ROUNDING + 1e-9)
    if len(bad := np.flatnonzero(wrong)):
        raise MemtoolError(
            f"row {bad[0]} is not a distribution: T[true, given] must be >= 0 and sum to 1 "
            f"along each row, this one sums to {matrix[bad[0]].sum():.6g}; divide each row by its "
            "sum, if that is meant"
        )
    return np.where(np.isclose(sums, 1, atol=1e-6), matrix, matrix / sums)


def redraw(true: Labels, transition: Matrix, ratio: float, seed: int) -> Labels:
    """Given labels, (n,), of which exactly round(ratio * n) are drawn from `transition`.

    `true` are the true labels, int64 (n,), and `transition` is (classes, classes). The seed fixes
    an order of the examples and a draw for each of them, whatever the ratio: what is mislabelled at
    5 % is so at 10 %, with the same given label. Raises MemtoolError for a ratio outside [0, 1].

    >>> redraw(np.array([0, 1, 2, 0, 1, 2]), transition_matrix(NoiseKind.pairflip, 3), 0.5, seed=0)
    array([0, 1, 0, 1, 1, 0])
    """
    if not 0 <= ratio <= 1:
        raise MemtoolError(f"noise ratio {ratio:g} is outside [0, 1]")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(true))
    draws = generator.random(len(true))
    redrawn = order[: round(ratio * len(true))]
    cumulative = transition.cumsum(axis=1)[true[redrawn]]
    # Inverse transform sampling, scaled to what the row sums to in floating point. Comparing with
    # <= leaves out classes of probability 0.
    thresholds = draws[redrawn, None] * cumulative[:, -1:]
    given = true.copy()
    given[redrawn] = (cumulative <= thresholds).sum(axis=1)
    return given
