"""What the tables of a reproduction on the digits show, in numbers: rows in, rows out.

A value is the mean over the seeds in the rows. The layers are block1 ... block6 of `digits-cnn`;
the bounds leave room for the spread between seeds.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]
Rows = Sequence[Row]

COLUMNS = ["finding", "value", "least", "most", "holds"]
HALF = 0.5  # the noise ratio that the findings about one ratio speak of
DEEP = ("block4", "block5", "block6")


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation of two sequences without ties, in [-1, 1]."""
    ranks = np.argsort(np.argsort([x, y], axis=1), axis=1).astype(float)
    return float(np.corrcoef(ranks)[0, 1])


def mean(rows: Iterable[Row], column: str, **conditions: Any) -> float:
    """The mean of `column` over the rows that meet all conditions; NaN if none does."""
    values = [
        row[column]
        for row in rows
        if row[column] is not None and all(row[key] == value for key, value in conditions.items())
    ]
    return float(np.mean(values)) if values else float("nan")


def findings(training: Rows, convergence: Rows, divergence: Rows, stitching: Rows) -> list[Row]:
    """What the paper says, measured: a row each with the columns COLUMNS.

    `training` and so on are the rows of the tables of all noise ratios and seeds.
    """
    values = [
        *_learning(training),
        *_convergence(convergence),
        *_divergence(divergence),
        *_stitching(stitching),
    ]
    return [
        dict(zip(COLUMNS, (name, value, least, most, least <= value <= most), strict=True))
        for name, value, least, most in values
    ]


Finding = tuple[str, float, float, float]  # name, value, least and most that are expected


def _learning(rows: Rows) -> list[Finding]:
    last = [row for row in rows if row["epoch"] == max(row["epoch"] for row in rows)]
    fitted = min(mean(last, "given_accuracy", noise_ratio=ratio) for ratio in _ratios(rows))
    return [
        ("accuracy on given labels, lowest of all r", fitted, 0.99, 1),
        ("test accuracy, r = 0", mean(last, "test_accuracy", noise_ratio=0.0), 0.98, 1),
        ("test accuracy, r = 50%", mean(last, "test_accuracy", noise_ratio=0.5), 0.54, 0.70),
        ("test accuracy, r = 67.5%", mean(last, "test_accuracy", noise_ratio=0.675), 0.36, 0.52),
    ]


def _convergence(rows: Rows) -> list[Finding]:
    """Speed of convergence: CKA to the final model, averaged over the epochs."""
    ratios = _ratios(rows)
    return [
        (
            f"Spearman(r, convergence), {layer}",
            spearman(
                ratios, [mean(rows, "cka", noise_ratio=ratio, layer=layer) for ratio in ratios]
            ),
            -1,
            -0.95,
        )
        for layer in DEEP
    ]


def _divergence(rows: Rows) -> list[Finding]:
    epochs = sorted({row["epoch"] for row in rows})

    def to_clean(layer: str) -> list[float]:
        return [mean(rows, "cka", noise_ratio=HALF, layer=layer, epoch=epoch) for epoch in epochs]

    shallow, deep = to_clean("block1"), to_clean("block6")
    peak = max(deep)
    return [
        ("CKA to clean at the end, block1, r = 50%", shallow[-1], 0.95, 1),
        ("CKA to clean at the end, block6, r = 50%", deep[-1], 0, 0.5),
        ("fall of CKA to clean from its peak, block6, r = 50%", peak - deep[-1], 0.25, 1),
        ("epoch of that peak", epochs[deep.index(peak)], 1, len(epochs) // 2),
    ]


def _stitching(rows: Rows) -> list[Finding]:
    """Test accuracy of stitched models less that of the networks that give their backs."""

    def gain(direction: str, layer: str) -> float:
        noisy = "back_noise_ratio" if direction == "reverse" else "front_noise_ratio"
        found = {"direction": direction, "front_layer": layer, noisy: HALF}
        return mean(rows, "test_accuracy", **found) - mean(rows, "back_accuracy", **found)

    return [
        ("cost of a noisy front, cut block1, r = 50%", -gain("forward", "block1"), -0.01, 0.01),
        ("cost of a noisy front, cut block6, r = 50%", -gain("forward", "block6"), 0.1, 1),
        ("gain of a clean front, cut block4, r = 50%", gain("reverse", "block4"), 0.3, 1),
        ("gain of the control, cut block4, r = 50%", gain("control", "block4"), 0, 0.25),
    ]


def _ratios(rows: Rows) -> list[float]:
    return sorted({row["noise_ratio"] for row in rows})
