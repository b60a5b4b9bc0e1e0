"""The claims of the paper, each with the number that decides it.

Layers, and cuts, are taken by the first and last third of the depth, in order of execution, or at
half of it; as in the figures, shortcuts are at no depth, and layers with the very same output at
one.

The paper gives no bounds; those in `CLAIMS` are ours, and the same for all data. A difference of
CKA or of accuracy is small up to `LITTLE` and large from `MUCH` on; a rank correlation is strong
from `STRONG` on and weak up to `WEAK`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from memtool.reproduction.evidence import (
    Tables,
    below_ceiling,
    convergence,
    divergence,
    drop,
    final_accuracy,
    gain,
    noisy_divergence,
)
from memtool.reproduction.samples import Missing, Sample, Values

LITTLE, MUCH = 0.05, 0.1
STRONG, WEAK = 0.8, 0.4
FLAT = 0.01  # what ranges over less than this has no order

Evidence = Callable[[Tables], Sample]
Statistic = Callable[[Values, Sample], float]
Third = Callable[[Values, Sample], Values]


@dataclass(frozen=True)
class Claim:
    """One claim, and the number that decides it.

    `statistic` makes the number from values averaged over seeds, (ratios, layers, epochs), and the
    sample that they are from. The claim holds from `holds` on, and does not from `fails` on in the
    other direction. `r = {r}` in `measure` names the largest noise ratio.
    """

    claim: str
    measure: str
    evidence: Evidence
    statistic: Statistic
    holds: float
    fails: float


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation, in [-1, 1], with average ranks for ties.

    It is 0 if either sequence is constant: the other then does not grow with it.

    >>> round(spearman([1, 2, 2, 4], [10, 20, 30, 40]), 4)
    0.9487
    """
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / norm, -1, 1)) if norm else 0.0


def _ranks(values: ArrayLike) -> Values:
    """Ranks from 1 on; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places], dtype=float)


# Statistics: values averaged over seeds, (ratios, layers, epochs), and their sample in, a number
# out.


def _third(number: int) -> Third:
    """The mean over the layers of a third of the depth, 0 to 2: values of shape (ratios, epochs).

    Of n layers, the one at place i, counted from 0, is at the depth (i + 1/2) / n.
    """

    def mean(values: Values, sample: Sample) -> Values:
        n = len(sample.layers)
        if n < 2:
            raise Missing(f"one layer alone ({sample.layers[0]}): no depth to compare")
        inside = np.minimum((3 * (2 * np.arange(n) + 1)) // (2 * n), 2) == number
        return np.asarray(values[:, inside].mean(axis=1))

    return mean


FIRST, LAST = _third(0), _third(2)


def _lowest(values: Values, _: Sample) -> float:
    return float(values.min())


def _over_ratios(sample: Sample, values: Values) -> float:
    if len(sample.ratios) < 3:
        raise Missing(f"a rank correlation with r needs three noise ratios, not {len(values)}")
    return _trend(sample.ratios, values)


def _over_depth(sample: Sample, values: Values) -> float:
    if len(sample.layers) < 3:
        raise Missing(f"a rank correlation with depth needs three layers, not {len(values)}")
    return _trend(np.arange(len(values)), values)


def _trend(x: ArrayLike, values: Values) -> float:
    """Spearman's correlation, or 0 where the values hardly differ: their ranks are chance then."""
    return spearman(x, values) if np.ptp(values) >= FLAT else 0.0


def _rank_of_accuracy(values: Values, sample: Sample) -> float:
    return _over_ratios(sample, values.ravel())


def _range_of(third: Third) -> Statistic:
    def statistic(values: Values, sample: Sample) -> float:
        if len(sample.ratios) < 2:
            raise Missing("one noise ratio alone: nothing to compare")
        return float(np.ptp(third(values, sample)))

    return statistic


def _rank_of(third: Third) -> Statistic:
    return lambda values, sample: _over_ratios(sample, third(values, sample).ravel())


def _slowing_over_depth(values: Values, sample: Sample) -> float:
    """Whether it is in deeper layers that convergence differs more between lowest and highest r."""
    if len(sample.ratios) < 2:
        raise Missing("one noise ratio alone: nothing to compare")
    return _over_depth(sample, values[0, :, 0] - values[-1, :, 0])


def _peak(values: Values, sample: Sample) -> float:
    """When CKA is highest at the largest r, in the last third, as a fraction of the training."""
    curve = LAST(values, sample)[-1]
    return sample.epochs[int(curve.argmax())] / _several(sample)[-1]


def _fall(values: Values, sample: Sample) -> float:
    """From the peak to the end at the largest r, in the last third."""
    return float(_falls(LAST(values, sample), sample)[-1])


def _fall_over_ratios(values: Values, sample: Sample) -> float:
    return _over_ratios(sample, _falls(LAST(values, sample), sample))


def _fall_over_depth(values: Values, sample: Sample) -> float:
    return _over_depth(sample, _falls(values, sample)[-1])


def _falls(values: Values, sample: Sample) -> Values:
    """By how much curves, along the last axis, end below their peak."""
    _several(sample)
    return np.asarray(values.max(axis=-1) - values[..., -1])


def _several(sample: Sample) -> tuple[int, ...]:
    if len(sample.epochs) < 2:
        raise Missing("one epoch alone: no peak to fall from")
    return sample.epochs


def _at_largest(third: Third) -> Statistic:
    return lambda values, sample: float(third(values, sample)[-1, 0])


def _middle_cut(values: Values, sample: Sample) -> float:
    """The value at the cut whose front is nearest to half of the network, (i + 1) / n of it, the
    deeper one of two, and at the largest noise ratio."""
    n = len(sample.layers)
    if n < 3:
        raise Missing("fewer than three cuts: none between the first and the last")
    return float(values[-1, (n - 1) // 2, 0])


def _first_cut(values: Values, sample: Sample) -> float:
    return float(values[-1, 0, 0])


CLAIMS = (
    Claim(
        "every noise ratio is learned in full",
        measure="accuracy on the given labels at the end, lowest of all r",
        evidence=final_accuracy("given_accuracy", "accuracy on the given labels"),
        statistic=_lowest,
        holds=0.99,
        fails=0.95,
    ),
    Claim(
        "test accuracy falls with r",
        measure="Spearman(r, test accuracy at the end)",
        evidence=final_accuracy("test_accuracy", "test accuracy"),
        statistic=_rank_of_accuracy,
        holds=-STRONG,
        fails=-WEAK,
    ),
    Claim(
        "early layers converge alike whatever r is",
        measure="range over r of the convergence, first third",
        evidence=convergence,
        statistic=_range_of(FIRST),
        holds=LITTLE,
        fails=MUCH,
    ),
    Claim(
        "deep layers converge more slowly the larger r is",
        measure="Spearman(r, convergence), last third",
        evidence=convergence,
        statistic=_rank_of(LAST),
        holds=-STRONG,
        fails=-WEAK,
    ),
    Claim(
        "the deeper a layer, the more noise slows its convergence",
        measure="Spearman(depth, convergence at the lowest r less that at r = {r})",
        evidence=convergence,
        statistic=_slowing_over_depth,
        holds=STRONG,
        fails=WEAK,
    ),
    Claim(
        "CKA to the clean model peaks early in deep layers",
        measure="epoch of the peak as a fraction of the training, last third, r = {r}",
        evidence=noisy_divergence,
        statistic=_peak,
        holds=0.5,
        fails=0.75,
    ),
    Claim(
        "CKA to the clean model then falls in deep layers",
        measure="fall of CKA to the clean model from its peak to the end, last third, r = {r}",
        evidence=noisy_divergence,
        statistic=_fall,
        holds=MUCH,
        fails=LITTLE,
    ),
    Claim(
        "CKA to the clean model falls more the larger r is",
        measure="Spearman(r, fall of CKA to the clean model), last third",
        evidence=divergence,
        statistic=_fall_over_ratios,
        holds=STRONG,
        fails=WEAK,
    ),
    Claim(
        "CKA to the clean model falls more the deeper the layer",
        measure="Spearman(depth, fall of CKA to the clean model), r = {r}",
        evidence=noisy_divergence,
        statistic=_fall_over_depth,
        holds=STRONG,
        fails=WEAK,
    ),
    Claim(
        "early layers stay as in another clean network",
        measure="final CKA to the clean model below that of a second clean network, first third, "
        "r = {r}",
        evidence=below_ceiling,
        statistic=_at_largest(FIRST),
        holds=LITTLE,
        fails=MUCH,
    ),
    Claim(
        "deep layers diverge beyond what another clean network does",
        measure="final CKA to the clean model below that of a second clean network, last third, "
        "r = {r}",
        evidence=below_ceiling,
        statistic=_at_largest(LAST),
        holds=MUCH,
        fails=LITTLE,
    ),
    Claim(
        "a noisy front costs a clean back little at early cuts",
        measure="loss of test accuracy, net of a clean front's, first third of the cuts, r = {r}",
        evidence=drop,
        statistic=_at_largest(FIRST),
        holds=LITTLE,
        fails=MUCH,
    ),
    Claim(
        "a noisy front costs a clean back much at late cuts",
        measure="loss of test accuracy, net of a clean front's, last third of the cuts, r = {r}",
        evidence=drop,
        statistic=_at_largest(LAST),
        holds=MUCH,
        fails=LITTLE,
    ),
    Claim(
        "a clean front of half the depth repairs more than the control",
        measure="gain of test accuracy, net of the control's, middle cut, r = {r}",
        evidence=gain,
        statistic=_middle_cut,
        holds=MUCH,
        fails=LITTLE,
    ),
    Claim(
        "nothing is gained by a clean front at the earliest cut",
        measure="gain of test accuracy, net of the control's, first cut, r = {r}",
        evidence=gain,
        statistic=_first_cut,
        holds=LITTLE,
        fails=MUCH,
    ),
)
