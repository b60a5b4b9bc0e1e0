"""Which claims of the paper hold in the tables of a reproduction: rows in, rows out.

It works for any network and data set. `samples.py` makes complete runs of rows, `evidence.py` the
numbers that claims are about, and `claims.py` says which number decides what.

Numbers are averaged over the seeds; how far they vary with these is a percentile bootstrap (Efron
and Tibshirani 1993, chapter 13) that draws whole seeds. A claim holds if the whole interval is at
or beyond one bound, does not if the whole interval is at or beyond the other, and is undecided
else.
"""

from collections.abc import Sequence

import numpy as np

from memtool.reproduction.claims import CLAIMS, Claim, Evidence, Statistic
from memtool.reproduction.evidence import Rows, Tables, select
from memtool.reproduction.samples import Missing, Sample
from memtool.tables import FindingRow

DRAWS = 2000  # of the bootstrap
HOLDS, FAILS, UNDECIDED = "holds", "does not", "undecided"


def measure_findings(training: Rows, cka: Rows, stitching: Rows) -> list[FindingRow]:
    """Decide each claim of the paper: one row per claim, always the same claims in this order.

    What the rows do not suffice for has no value, is undecided, and says why.

    Args:
        training: Rows of `memtool train`, of all noise ratios and seeds.
        cka: Rows of `memtool cka`, of corresponding layers: to the final model of the same run
            (convergence) and to the final clean model (divergence), in one list. A run with noise
            ratio 0 that is compared with a clean model of another run is the ceiling.
        stitching: Rows of `memtool stitch --both --control`, with the final clean model as the
            back.

    Any of them may be empty. The order of rows makes no difference, but for that of the layers of a
    network, which is their order of execution.

    Raises:
        MemtoolError: If rows lack a column, or mix what cannot be compared, such as estimators.
    """
    tables = select(training, cka, stitching)
    evidence: dict[Evidence, Sample | Missing] = {
        find: _found(find, tables) for find in {claim.evidence for claim in CLAIMS}
    }
    return [_finding(claim, evidence[claim.evidence]) for claim in CLAIMS]


def _found(find: Evidence, tables: Tables) -> Sample | Missing:
    try:
        return find(tables)
    except Missing as reason:
        return reason


def _finding(claim: Claim, found: Sample | Missing) -> FindingRow:
    try:
        if isinstance(found, Missing):
            raise found
        value = claim.statistic(found.values.mean(axis=0), found)
        low, high = interval(found, claim.statistic)
    except Missing as reason:
        return _undecided(claim, str(reason))
    ends = (value,) if low is None or high is None else (low, high)
    verdict = _verdict(claim, ends)
    return {
        "claim": claim.claim,
        "measure": claim.measure.format(r=f"{100 * found.ratios[-1]:g}%"),
        "value": value,
        "low": low,
        "high": high,
        "seeds": len(found.seeds),
        "verdict": verdict,
        "why": "; ".join(
            filter(None, [f"{_told(value, ends, found)} {_said(claim, verdict)}", found.note])
        ),
    }


def _undecided(claim: Claim, reason: str) -> FindingRow:
    return {
        "claim": claim.claim,
        "measure": claim.measure.format(r="the largest r").replace("r = the", "the"),
        "value": None,
        "low": None,
        "high": None,
        "seeds": 0,
        "verdict": UNDECIDED,
        "why": reason,
    }


def _verdict(claim: Claim, ends: Sequence[float]) -> str:
    sign = 1 if claim.holds > claim.fails else -1
    if all(sign * end >= sign * claim.holds for end in ends):
        return HOLDS
    return FAILS if all(sign * end <= sign * claim.fails for end in ends) else UNDECIDED


def _told(value: float, ends: Sequence[float], found: Sample) -> str:
    """The value with its interval."""
    if len(ends) == 1:
        return f"{value:.3g} (one seed: no interval)"
    return f"{value:.3g} (95% interval {ends[0]:.3g} to {ends[1]:.3g}, {len(found.seeds)} seeds)"


def _said(claim: Claim, verdict: str) -> str:
    """How the value lies to the bounds."""
    beyond, behind = ("at least", "at most")
    if claim.holds < claim.fails:
        beyond, behind = behind, beyond
    return {
        HOLDS: f"is {beyond} {claim.holds:g}",
        FAILS: f"is {behind} {claim.fails:g}",
        UNDECIDED: f"is not clearly {beyond} {claim.holds:g}, nor {behind} {claim.fails:g}",
    }[verdict]


def interval(found: Sample, statistic: Statistic) -> tuple[float | None, float | None]:
    """The 2.5th and 97.5th percentile of the statistic of seeds drawn with replacement.

    (None, None) for a single seed. With two or three seeds this is the range of their values.
    """
    n = len(found.seeds)
    if n == 1:
        return None, None
    drawn = np.sort(np.random.default_rng(0).integers(n, size=(DRAWS, n)), axis=1)
    # Few seeds can be drawn in few ways only.
    picks, counts = np.unique(drawn, axis=0, return_counts=True)
    values = [statistic(found.values[pick].mean(axis=0), found) for pick in picks]
    low, high = np.percentile(np.repeat(values, counts), [2.5, 97.5])
    return float(low), float(high)
