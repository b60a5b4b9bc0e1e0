"""Label noise: labels in, labels out. Every kind is a transition matrix T[true, given].

An example is *redrawn* when its given label is drawn from row T[true]; it is *mislabelled* when
the given label then differs from the true one. `uniform` (the paper's: any class) may draw the
true class again, so fewer than r * n examples are mislabelled; `symmetric` never does.
"""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError

Labels = NDArray[np.int64]
Matrix = NDArray[np.float64]


class NoiseKind(StrEnum):
    """How a redrawn example gets its label."""

    uniform = "uniform"  # any class, the true one included (Zhang et al. 2017; the paper)
    symmetric = "symmetric"  # any other class (cleanlab's symmetric noise)
    pairflip = "pairflip"  # the next class, the last one wrapping to the first (Han et al. 2018)
    matrix = "matrix"  # row T[true] of a transition matrix


def transition_matrix(kind: NoiseKind, classes: int) -> Matrix:
    """T[true, given] of redrawn labels, (classes, classes), rows summing to 1.

    Raises MemtoolError for `symmetric` and `pairflip` with fewer than two classes.
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


def check_transition_matrix(matrix: Matrix, classes: int) -> None:
    """Raise MemtoolError unless `matrix` is (classes, classes), non-negative, rows summing to 1."""
    if matrix.shape != (classes, classes):
        raise MemtoolError(f"a {classes} x {classes} matrix is needed, not {matrix.shape}")
    bad = np.flatnonzero(~np.isclose(matrix.sum(axis=1), 1, atol=1e-6) | ~(matrix >= 0).all(axis=1))
    if len(bad):
        raise MemtoolError(
            f"row {bad[0]} is not a distribution: T[true, given] must be >= 0 and sum to 1 "
            f"along each row, this one sums to {matrix[bad[0]].sum():.6g}"
        )


def redraw(true: Labels, transition: Matrix, ratio: float, seed: int) -> Labels:
    """Given labels, (n,): exactly round(ratio * n) examples of `true` redrawn from `transition`.

    `ratio` is in [0, 1], else MemtoolError. One seed orders the examples and fixes the draw of
    each, whatever the ratio: what is mislabelled at 5 % is so at 10 %, with the same given label.
    """
    if not 0 <= ratio <= 1:
        raise MemtoolError(f"noise ratio {ratio:g} is outside [0, 1]")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(true))
    draws = generator.random(len(true))
    redrawn = order[: round(ratio * len(true))]
    cumulative = transition.cumsum(axis=1)[true[redrawn]]
    # Inverse transform sampling, scaled to what the row really sums to in floating point; the
    # strict comparison leaves out classes of probability 0.
    thresholds = draws[redrawn, None] * cumulative[:, -1:]
    given = true.copy()
    given[redrawn] = (cumulative <= thresholds).sum(axis=1)
    return given
