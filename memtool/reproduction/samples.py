"""The rows of a table as numbers for each run: seeds x noise ratios x layers x epochs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.errors import shortened, some

Values = NDArray[np.float64]


class Missing(Exception):
    """What a number cannot be computed for; the message is the reason, as a reader is told it."""


class Cell(NamedTuple):
    """What one number was measured of. A layer may be a cut; where there are none it is empty."""

    seed: int | None
    ratio: float
    layer: str = ""
    epoch: int = 0


@dataclass(frozen=True)
class Sample:
    """Numbers of complete runs, `values` of shape (seeds, ratios, layers, epochs).

    Seeds, ratios and epochs ascend; layers are in order of execution. `note` says what was left out
    because not every run has it; it is empty if nothing was.
    """

    values: Values
    seeds: tuple[int | None, ...]
    ratios: tuple[float, ...]
    layers: tuple[str, ...]
    epochs: tuple[int, ...]
    note: str = ""

    @property
    def clean(self) -> "Sample":
        """The part with noise ratio 0."""
        return self._where(ratio == 0 for ratio in self.ratios)

    @property
    def noisy(self) -> "Sample":
        """The part with other noise ratios; raises Missing if there are none."""
        if not any(self.ratios):
            raise Missing("no noise ratio above 0")
        return self._where(ratio > 0 for ratio in self.ratios)

    def _where(self, keep: Iterable[bool]) -> "Sample":
        """The part with the noise ratios whose `keep` is true."""
        kept = np.array(list(keep), dtype=bool)
        ratios = tuple(ratio for ratio, yes in zip(self.ratios, kept, strict=True) if yes)
        return replace(self, values=self.values[:, kept], ratios=ratios)


def sample(measured: Iterable[tuple[Cell, float | None]], what: str) -> Sample:
    """The largest sample without gaps: the noise ratios that all seeds have, the epochs that all of
    these runs have, and the layers that have a value in all of them.

    Layers are in the order in which they first appear. The order of everything else, and a cell
    that is measured twice with equal values, make no difference.

    Raises Missing if nothing is left, and MemtoolError for two different values of one cell; `what`
    names the values in the messages.

    >>> runs = [(Cell(0, 0.5, "conv", 1), 0.9), (Cell(0, 0.0, "conv", 1), 1.0)]
    >>> sample(runs, "CKA").values.tolist()
    [[[[1.0]], [[0.9]]]]
    """
    measured = list(measured)
    cells = _cells(measured, what)
    if not cells:
        raise Missing(f"no {what} in the tables")
    ratios = sorted(_shared(cells, "seed", "ratio"))
    cells = {cell: value for cell, value in cells.items() if cell.ratio in ratios}
    epochs = sorted(_shared(cells, "seed ratio", "epoch"))
    cells = {cell: value for cell, value in cells.items() if cell.epoch in epochs}
    layers = _shared(cells, "seed ratio epoch", "layer")
    if not layers:
        raise Missing(f"no {what} that all runs have in common")
    seeds = sorted({cell.seed for cell in cells}, key=lambda seed: -1 if seed is None else seed)
    values = np.array(
        [
            [[[cells[Cell(s, r, layer, e)] for e in epochs] for layer in layers] for r in ratios]
            for s in seeds
        ]
    )
    note = _note([cell for cell, _ in measured], ratios, layers, epochs)
    return Sample(
        values=values,
        seeds=tuple(seeds),
        ratios=tuple(ratios),
        layers=tuple(layers),
        epochs=tuple(epochs),
        note=note,
    )


def _cells(measured: Iterable[tuple[Cell, float | None]], what: str) -> dict[Cell, float]:
    """The cells that have a value."""
    found: dict[Cell, float | None] = {}
    for cell, value in measured:
        if found.setdefault(cell, value) != value:
            raise MemtoolError(
                f"the tables have two values of {what} ({found[cell]} and {value}) for seed "
                f"{cell.seed}, r = {100 * cell.ratio:g}%, epoch {cell.epoch}"
                + (f", {shortened(cell.layer)}" if cell.layer else "")
                + ": leave the rows of one of them out"
            )
    return {cell: value for cell, value in found.items() if value is not None}


def _shared(cells: Iterable[Cell], of: str, name: str) -> list[Any]:
    """The values of the field `name` that occur with every combination of the fields `of`."""
    per_run: dict[tuple[Any, ...], dict[Any, None]] = {}
    for cell in cells:
        run = tuple(getattr(cell, field) for field in of.split())
        per_run.setdefault(run, {})[getattr(cell, name)] = None
    found = dict.fromkeys(value for values in per_run.values() for value in values)
    return [value for value in found if all(value in values for values in per_run.values())]


def _note(
    cells: Sequence[Cell],
    ratios: Iterable[float],
    layers: Iterable[str],
    epochs: Iterable[int],
) -> str:
    """What was measured but is not among these."""
    parts: dict[str, list[Any]] = {
        "r": [f"{100 * r:g}%" for r in sorted({cell.ratio for cell in cells}.difference(ratios))],
        "layer": sorted({cell.layer for cell in cells}.difference(layers)),
        "epoch": sorted({cell.epoch for cell in cells}.difference(epochs)),
    }
    told = "; ".join(
        f"{name} {some([str(one) for one in values])}" for name, values in parts.items() if values
    )
    return f"left out, since not all runs have it: {told}" if told else ""
