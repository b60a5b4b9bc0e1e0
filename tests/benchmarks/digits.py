"""What the digits must show, in numbers: rows of the tables in, rows out.

Each value is the mean over the seeds in the rows. The layers are block1 to block6 of `digits-cnn`.
The bounds of the expected values leave room for the spread between seeds.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np

from memtool import tables
from memtool.reproduction import spearman
from memtool.tables import Column, Row

Rows = Sequence[Row]

HALF = 0.5  # the noise ratio of the numbers that concern a single one
DEEP = ("block4", "block5", "block6")


class Expectation(TypedDict):
    """A number, and the bounds between which it must lie."""

    finding: Annotated[str, Column("what was measured")]
    value: Annotated[float, Column("mean over the seeds")]
    least: Annotated[float, Column("lowest value that is expected")]
    most: Annotated[float, Column("highest value that is expected")]
    holds: Annotated[bool, Column("whether the value lies between the two")]


def tables_of_runs(folder: Path) -> tuple[Rows, Rows, Rows]:
    """The rows of training, of CKA and of stitching in the folder of a reproduction."""
    training, cka, stitching = (
        [
            row
            for path in sorted((folder / "tables").glob(f"{kind}-*.csv"))
            for row in tables.read(path)
        ]
        for kind in ("training", "cka", "stitching")
    )
    return training, cka, stitching


def expectations(training: Rows, cka: Rows, stitching: Rows) -> list[Expectation]:
    """What is expected of the tables of `reproduce digits`, measured."""
    return [
        *_learning([row for row in training if row.get("order_seed") is None]),
        *_convergence([row for row in cka if is_same_run(row)]),
        *_divergence([row for row in cka if row["reference_noise_ratio"] == 0]),
        *_stitching(stitching),
    ]


def is_same_run(row: Row) -> bool:
    """Whether a checkpoint is compared with the end of its own run, in the order of its seed."""
    reordered = row.get("order_seed"), row.get("reference_order_seed")
    return row["noise_ratio"] == row["reference_noise_ratio"] and reordered == (None, None)


def _learning(rows: Rows) -> list[Expectation]:
    """Every noise ratio is learned in full; the test accuracy is what suffers."""
    last = [row for row in rows if row["epoch"] == max(row["epoch"] for row in rows)]
    learned = min(mean(last, "given_accuracy", noise_ratio=ratio) for ratio in _ratios(rows))

    def tested(ratio: float) -> float:
        return mean(last, "test_accuracy", noise_ratio=ratio)

    return [
        _expect("accuracy on given labels, lowest of all r", learned, 0.99, 1),
        _expect("test accuracy, r = 0", tested(0.0), 0.98, 1),
        _expect("test accuracy, r = 50%", tested(HALF), 0.54, 0.70),
        _expect("test accuracy, r = 67.5%", tested(0.675), 0.36, 0.52),
    ]


def _convergence(rows: Rows) -> list[Expectation]:
    """Deep layers converge more slowly the larger r is.

    The speed of convergence is the CKA to the final model, averaged over the epochs.
    """
    ratios = _ratios(rows)

    def speeds(layer: str) -> list[float]:
        return [mean(rows, "cka", noise_ratio=ratio, layer=layer) for ratio in ratios]

    return [
        _expect(f"Spearman(r, convergence), {layer}", spearman(ratios, speeds(layer)), -1, -0.95)
        for layer in DEEP
    ]


def _divergence(rows: Rows) -> list[Expectation]:
    """A deep layer becomes like that of the clean model, then unlike it; a shallow one stays."""
    epochs = sorted({row["epoch"] for row in rows})

    def to_clean(layer: str) -> list[float]:
        return [mean(rows, "cka", noise_ratio=HALF, layer=layer, epoch=epoch) for epoch in epochs]

    shallow, deep = to_clean("block1"), to_clean("block6")
    peak = max(deep)
    peak_epoch = epochs[deep.index(peak)]
    return [
        _expect("CKA to clean at the end, block1, r = 50%", shallow[-1], 0.95, 1),
        _expect("CKA to clean at the end, block6, r = 50%", deep[-1], 0, 0.5),
        _expect("fall of CKA to clean from its peak, block6, r = 50%", peak - deep[-1], 0.25, 1),
        _expect("epoch of that peak", peak_epoch, 1, len(epochs) // 2),
    ]


def _stitching(rows: Rows) -> list[Expectation]:
    """A noisy front costs accuracy in deep cuts; a clean front gains more than the control."""

    def gain(direction: str, layer: str) -> float:
        """Test accuracy of the stitched models less that of the networks that give their backs."""
        noisy = "back_noise_ratio" if direction == "reverse" else "front_noise_ratio"
        conditions = {"direction": direction, "front_layer": layer, noisy: HALF}
        return mean(rows, "test_accuracy", **conditions) - mean(rows, "back_accuracy", **conditions)

    shallow_cost, deep_cost = -gain("forward", "block1"), -gain("forward", "block6")
    clean, control = gain("reverse", "block4"), gain("control", "block4")
    return [
        _expect("cost of a noisy front, cut block1, r = 50%", shallow_cost, -0.01, 0.01),
        _expect("cost of a noisy front, cut block6, r = 50%", deep_cost, 0.1, 1),
        _expect("gain of a clean front, cut block4, r = 50%", clean, 0.3, 1),
        _expect("gain of the control, cut block4, r = 50%", control, 0, 0.25),
    ]


def _expect(name: str, value: float, least: float, most: float) -> Expectation:
    return {
        "finding": name,
        "value": value,
        "least": least,
        "most": most,
        "holds": least <= value <= most,
    }


def _ratios(rows: Rows) -> list[float]:
    return sorted({row["noise_ratio"] for row in rows})


def mean(rows: Iterable[Row], column: str, **conditions: Any) -> float:
    """The mean of `column` over the rows that meet all conditions, empty cells left out.

    NaN if there are none.

    >>> mean([{"epoch": 1, "cka": 0.5}, {"epoch": 2, "cka": 0.9}], "cka", epoch=2)
    0.9
    """
    values = [
        row[column]
        for row in rows
        if row[column] is not None and all(row[key] == value for key, value in conditions.items())
    ]
    return float(np.mean(values)) if values else float("nan")
