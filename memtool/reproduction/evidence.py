"""What claims are decided by, as numbers: rows of tables in, samples of complete runs out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memtool.figures import Needs, cut_name, on_main_path, same_run
from memtool.reproduction.samples import Cell, Missing, Sample, sample
from memtool.tables import CkaRow, Row, StitchingRow, TrainingRow

Rows = Sequence[Row]

TRAINING = Needs(
    TrainingRow,
    columns=("noise_ratio", "seed", "epoch", "given_accuracy", "test_accuracy"),
    conditions=("data",),
    optional=("order_seed",),
)
CKA = Needs(
    CkaRow,
    columns=("layer", "reference_layer", "epoch", "noise_ratio", "seed", "cka"),
    conditions=("estimator", "kernel", "bandwidth", "data", "n"),
    optional=(
        *("same_as", "noise_kind", "noise_seed", "order_seed"),
        *("front_layer", "front_noise_ratio"),
        *("reference_epoch", "reference_noise_ratio", "reference_noise_kind"),
        *("reference_noise_seed", "reference_seed", "reference_order_seed"),
    ),
)
STITCHING = Needs(
    StitchingRow,
    columns=("direction", "front_layer", "back_layer", "test_accuracy", "back_accuracy"),
    conditions=("data", "init", "optimizer", "epochs", "learning_rate", "batch_size"),
    optional=(
        *("epoch", "front_noise_ratio", "back_noise_ratio", "front_seed", "back_seed"),
        "control_accuracy",
    ),
)


@dataclass(frozen=True)
class Tables:
    """The rows of one reproduction, with the columns that findings read."""

    training: Rows
    cka: Rows
    stitching: Rows


def select(training: Rows, cka: Rows, stitching: Rows) -> Tables:
    """The tables with the columns that findings read, their cells of the declared types.

    Raises MemtoolError for a missing column, a cell of another type, or rows that mix what cannot
    be compared.
    """
    return Tables(
        _selected(TRAINING, training), _selected(CKA, cka), _selected(STITCHING, stitching)
    )


def _selected(needs: Needs, rows: Rows) -> Rows:
    if rows:
        needs.check_columns(rows, "findings")
    selected = needs.select(rows)
    needs.check_conditions(selected, "findings")
    return selected


def _final(rows: Rows, key: Callable[[Row], Any]) -> list[Row]:
    """The rows of the last epoch of each run; their epoch does not count any more. Raises Missing
    if runs end at different epochs."""
    last: dict[Any, int] = {}
    for row in rows:
        last[key(row)] = max(row["epoch"], last.get(key(row), row["epoch"]))
    if len(ends := sorted(set(last.values()))) > 1:
        raise Missing(f"runs end at different epochs, from {ends[0]} to {ends[-1]}")
    return [{**row, "epoch": 0} for row in rows if row["epoch"] == last[key(row)]]


def final_accuracy(column: str, what: str) -> Callable[[Tables], Sample]:
    """A column of the training at the end of each run."""

    def evidence(tables: Tables) -> Sample:
        rows = [
            row
            for row in tables.training
            if None not in (row["epoch"], row["noise_ratio"]) and not _is_reordered(row)
        ]
        final = _final(rows, lambda row: (row["seed"], row["noise_ratio"]))
        return sample([(Cell(row["seed"], row["noise_ratio"]), row[column]) for row in final], what)

    return evidence


def _is_reordered(row: Row) -> bool:
    """Whether a run had another order of batches than its seed gives: it is the ceiling's."""
    return row["order_seed"] not in (None, row["seed"])


def _similarities(tables: Tables) -> list[Row]:
    """CKA of corresponding layers of networks of a known noise ratio that are not stitched, where
    each place along the depth counts once, as in the figures."""
    return on_main_path(
        [
            row
            for row in tables.cka
            if row["layer"] == row["reference_layer"]
            and row["front_layer"] is None
            and row["epoch"] is not None
            and row["noise_ratio"] is not None
        ]
    )


def _cka(rows: Rows, what: str) -> Sample:
    return sample(
        [
            (Cell(row["seed"], row["noise_ratio"], row["layer"], row["epoch"]), row["cka"])
            for row in rows
        ],
        what,
    )


def convergence(tables: Tables) -> Sample:
    """CKA to the final model of the same run before that is reached, where it is 1, averaged over
    the epochs: how early a layer was as it is in the end."""
    cka = _cka(
        [
            row
            for row in _similarities(tables)
            if same_run(row) and not _is_reordered(row) and row["epoch"] != row["reference_epoch"]
        ],
        "CKA to the final model of the same run",
    )
    return replace(cka, values=cka.values.mean(axis=3, keepdims=True), epochs=(0,))


def divergence(tables: Tables) -> Sample:
    """CKA to the final clean model; that of noise ratio 0 is the ceiling, if all seeds have one."""
    return _cka(_to_clean(tables), "CKA to the final clean model")


def noisy_divergence(tables: Tables) -> Sample:
    return divergence(tables).noisy


def _to_clean(tables: Tables) -> list[Row]:
    return [
        row
        for row in _similarities(tables)
        if row["reference_noise_ratio"] == 0 and not same_run(row)
    ]


def below_ceiling(tables: Tables) -> Sample:
    """By how much the final CKA to the clean model is below that of a second clean network."""
    rows = _final(_to_clean(tables), lambda row: (row["seed"], row["noise_ratio"]))
    seeds = {row["seed"] for row in rows if row["noise_ratio"] == 0}
    if not seeds:
        raise Missing("no second clean network to compare with")
    cka = _cka([row for row in rows if row["seed"] in seeds], "CKA to the final clean model")
    return replace(cka.noisy, values=cka.clean.values - cka.noisy.values)


def drop(tables: Tables) -> Sample:
    """Accuracy that a noisy front costs a clean back, less what a clean front costs it."""
    loss = sample(
        [
            (
                Cell(row["front_seed"], row["front_noise_ratio"], str(cut_name(row))),
                _difference(row["back_accuracy"], row["test_accuracy"]),
            )
            for row in _stitched(tables, "forward", "front")
            if row["back_noise_ratio"] == 0
        ],
        "accuracy of noisy fronts on a clean back",
    )
    if 0 not in loss.ratios:
        raise Missing("no clean front on a clean back, which shows what the stitching layer costs")
    return replace(loss.noisy, values=loss.noisy.values - loss.clean.values)


def gain(tables: Tables) -> Sample:
    """Accuracy that a clean front gives a noisy back beyond what the control has."""
    rows = [
        row
        for row in _stitched(tables, "reverse", "back")
        if row["front_noise_ratio"] == 0 and row["back_noise_ratio"] > 0
    ]
    if rows and all(row["control_accuracy"] is None for row in rows):
        raise Missing("no control: stitch with --control")
    return sample(
        [
            (
                Cell(row["back_seed"], row["back_noise_ratio"], str(cut_name(row))),
                _difference(row["test_accuracy"], row["control_accuracy"]),
            )
            for row in rows
        ],
        "accuracy of clean fronts on noisy backs",
    )


def _stitched(tables: Tables, direction: str, noisy: str) -> Iterator[Row]:
    """The models of a direction whose stitching layer is trained to the end."""
    for row in tables.stitching:
        known = row[f"{noisy}_noise_ratio"] is not None
        if known and row["direction"] == direction and row["epoch"] in (None, row["epochs"]):
            yield row


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
