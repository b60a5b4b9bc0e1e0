"""Figures 1 and 3: CKA of checkpoints to the final model of their own run, or to a clean one."""

import logging
from typing import Any

from matplotlib.figure import Figure

from memtool import MemtoolError
from memtool.figures import by_epoch, by_layer
from memtool.figures.bounds import without_ceiling
from memtool.figures.curves import run
from memtool.figures.layer_axis import one_per_tensor
from memtool.figures.options import Options, XAxis
from memtool.figures.rows import Needs, Rows, in_order, usable
from memtool.figures.selection import of_epochs, of_layers, of_ratios
from memtool.tables import CkaRow, Row

logger = logging.getLogger("memtool")

NEEDS: Needs = Needs(
    CkaRow,
    columns=("checkpoint", "reference", "layer", "reference_layer", "cka", "epoch", "noise_ratio"),
    conditions=("estimator", "kernel", "bandwidth", "data", "n"),
    optional=(
        *("same_as", "cka_null", "model", "noise_kind", "noise_seed", "seed", "order_seed"),
        *("front_layer", "front_noise_ratio", "front_noise_seed", "front_seed"),
        *("back_layer", "back_noise_ratio", "back_noise_seed", "back_seed"),
        *("reference_noise_ratio", "reference_noise_kind", "reference_noise_seed"),
        *("reference_seed", "reference_order_seed", "reference_epoch", "sample_seed", "precision"),
    ),
)
MOST_PANELS = 8  # layers up to which each gets a panel, unless one asks otherwise
RUN = ("noise_ratio", "seed", "order_seed")  # what tells runs apart
NOISE = ("noise_kind", "noise_seed")  # which do so too where there is noise


def of_convergence(rows: Rows, options: Options) -> list[Row]:
    """The rows that are asked for, without those that compare checkpoints known to be of two runs.

    Raises MemtoolError if there are none, or if they are for a heatmap.
    """
    check_corresponding(rows)
    rows = _of_runs(rows)
    own = [row for row in rows if not _known_to_differ(row)]
    if rows and not own:
        raise MemtoolError(
            "convergence: no row compares a checkpoint with the final model of its own run; "
            "draw them as divergence"
        )
    return _chosen(own, options)


def of_divergence(rows: Rows, options: Options) -> list[Row]:
    """The rows that are asked for, and whose reference is compared with checkpoints of other runs:
    the own run of a clean reference is among them, at the top. Beside clean references, others are
    left out, with a note.

    Raises MemtoolError if there are none, or if they are for a heatmap.
    """
    check_corresponding(rows)
    rows = _of_runs(rows)
    others = of_other_runs(rows)
    found = [row for row in rows if reference_run(row) in others]
    if rows and not found:
        raise MemtoolError(
            "divergence: all rows compare a checkpoint with its own run; draw them as convergence"
        )
    clean = [row for row in found if row["reference_noise_ratio"] == 0]
    if clean and len(clean) < len(found):
        logger.info(
            "divergence: shows the CKA to clean networks, and leaves out that to noisy ones"
        )
        found = clean
    return _chosen(found, options)


def of_other_runs(rows: Rows) -> set[tuple[Any, ...]]:
    """The runs of the references that are compared with checkpoints of other runs, or of unknown
    ones."""
    return {reference_run(row) for row in rows if not same_run(row)}


def reference_run(row: Row) -> tuple[Any, ...]:
    """What tells the run of a row's reference from others."""
    ratio = row["reference_noise_ratio"]
    if ratio is None:
        return (row["reference"],)
    return tuple(row[f"reference_{column}"] for column in _telling(ratio))


def is_stitched(row: Row) -> bool:
    """Whether a row is of a stitched model, which is no point of any run."""
    return row["front_layer"] is not None or row["front_noise_ratio"] is not None


def same_run(row: Row) -> bool:
    """Whether checkpoint and reference come from the same run; unknown runs count as different, and
    so do stitched models."""
    if row["noise_ratio"] is None or is_stitched(row):
        return False
    return all(row[one] == row[f"reference_{one}"] for one in _telling(row["noise_ratio"]))


def _known_to_differ(row: Row) -> bool:
    """Whether checkpoint and reference come from different runs; unknown runs do not count."""
    pairs = {one: (row[one], row[f"reference_{one}"]) for one in _telling(row["noise_ratio"])}
    # An empty order_seed is known: it is the seed.
    return any(
        mine != theirs and (None not in (mine, theirs) or one == "order_seed")
        for one, (mine, theirs) in pairs.items()
    )


def _telling(ratio: float | None) -> tuple[str, ...]:
    return (*RUN, *NOISE) if ratio else RUN


def _of_runs(rows: Rows) -> list[Row]:
    """The rows without those of stitched models; raises MemtoolError if there are no others."""
    found = [row for row in rows if not is_stitched(row)]
    if rows and not found:
        raise MemtoolError("all rows are of stitched models: draw them as supplement")
    return found


def networks(row: Row) -> tuple[str, str]:
    """Which networks a row compares."""
    return row["checkpoint"], row["reference"]


def check_corresponding(rows: Rows) -> None:
    """Raise MemtoolError if a layer is compared with several of one reference."""
    if several_reference_layers(rows):
        raise MemtoolError(
            "the table compares a layer with several reference layers: draw it as a heatmap, "
            "or leave out `--pairs all` to compare corresponding layers"
        )


def _chosen(rows: Rows, options: Options) -> list[Row]:
    rows = in_order(rows, networks, lambda row: row["layer"])
    rows, ceiling = without_ceiling(of_layers(rows, options.layers), _known_to_differ)
    rows = of_ratios(rows, options.ratios, lambda row: row["noise_ratio"])
    return [*of_epochs(rows, options.epochs, run), *ceiling]


def draw_convergence(rows: Rows, options: Options) -> Figure:
    """Figure 1: CKA of each checkpoint to the final model of its own run; the axis says "final"
    unless a row is of a later epoch."""
    return _draw(rows, f"CKA to {_final(rows)}model", options)


def draw_divergence(rows: Rows, options: Options) -> Figure:
    """Figure 3: CKA of each checkpoint to the final clean model.

    The axis says "clean" only if all rows do, by a `reference_noise_ratio` of 0, and "final" unless
    a row is of a later epoch.
    """
    clean = all(row["reference_noise_ratio"] == 0 for row in rows)
    what = f"{_final(rows)}clean model" if clean else "reference model"
    return _draw(rows, f"CKA to {what}", options)


def _final(rows: Rows) -> str:
    """Whether references are final models, as a word: no row is of a later epoch."""
    epochs = ((row["epoch"], row["reference_epoch"]) for row in rows)
    return "" if any(None not in both and both[0] > both[1] for both in epochs) else "final "


def several_reference_layers(rows: Rows) -> bool:
    """Whether a layer is compared with more than one layer of the same reference."""
    pairs = {(r["checkpoint"], r["reference"], r["layer"], r["reference_layer"]) for r in rows}
    return len(pairs) > len({pair[:3] for pair in pairs})


def _draw(rows: Rows, ylabel: str, options: Options) -> Figure:
    rows, ceiling = without_ceiling(usable(rows, "cka"), _known_to_differ)
    x = options.x or _best_axis(rows, options)
    if options.marks and x is XAxis.epoch:
        raise MemtoolError("marks are lines between layers, which are not on an x axis of epochs")
    draw = by_layer.draw if x is XAxis.layer else by_epoch.draw
    return draw(rows, ceiling, ylabel, options)


def _best_axis(rows: Rows, options: Options) -> XAxis:
    """Epochs for a few layers, if there are several, and none is to be marked."""
    many = len(one_per_tensor(rows)) > MOST_PANELS or options.marks
    return XAxis.layer if many or not by_layer.several_epochs(rows) else XAxis.epoch
