"""What figures need of tables, against what the tables declare."""

import pytest

from memtool import MemtoolError, tables
from memtool.figures import Kind, draw, recognize
from memtool.figures.curves import curve
from memtool.figures.drawing import FIGURES
from memtool.figures.rows import Needs, groups, in_order, positions, usable

from .examples import TABLES

NEEDS = Needs(
    tables.TrainingRow,
    columns=("epoch", "loss", "noise_ratio"),
    conditions=("model", "noise_kind"),
    optional=("seed",),
)


def training_row(**changes):
    row = {"epoch": 1, "loss": 0.5, "noise_ratio": 0.25, "model": "cnn", "noise_kind": "uniform"}
    return row | changes


@pytest.mark.parametrize("part", ["columns", "conditions", "optional"])
def test_a_figure_cannot_need_what_the_table_does_not_have(part):
    needs = {"columns": ("epoch",), "conditions": (), "optional": ()}
    with pytest.raises(ValueError, match="TrainingRow has no column accurracy"):
        Needs(tables.TrainingRow, **needs | {part: ("accurracy",)})


@pytest.mark.parametrize("kind", FIGURES)
def test_the_tables_have_what_each_figure_needs(kind):
    needs = FIGURES[kind].needs
    assert set(needs.names) <= tables.columns(needs.row_type).keys()


def test_a_figure_gets_the_declared_columns_and_no_others():
    (row,) = NEEDS.select([training_row(test_accuracy=0.9)])
    assert row == training_row(seed=None)


@pytest.mark.parametrize("kind", FIGURES)
@pytest.mark.parametrize("empty", [None, "", "  "])
def test_an_empty_cell_that_has_to_name_something_is_refused_with_its_place(kind, empty):
    needs = FIGURES[kind].needs
    names = [name for name in needs.columns if tables.is_name(needs.row_type, name)]
    row = dict.fromkeys(needs.columns) | dict.fromkeys(names, "x")
    assert needs.select([row])
    for name in names:
        with pytest.raises(MemtoolError, match=f"^row 2, column {name}: is empty; every row"):
            needs.select([row, row | {name: empty}])


def check(rows):
    NEEDS.check_columns(rows, "training")
    NEEDS.check_conditions(NEEDS.select(rows), "training")


def test_a_condition_may_be_missing_or_empty_but_not_differ():
    check([training_row(), training_row(model=None)])
    check([{"epoch": 1, "loss": 0.5, "noise_ratio": 0.25}] * 2)
    with pytest.raises(MemtoolError, match=r"training: the rows differ in model \(cnn, vit\)"):
        check([training_row(), training_row(model="vit")])


def test_a_run_without_noise_may_name_any_kind_of_noise():
    clean = training_row(noise_ratio=0.0, noise_kind="pairflip")
    check([training_row(), clean])
    with pytest.raises(MemtoolError, match="differ in noise_kind"):
        check([training_row(), training_row(noise_kind="pairflip")])


def test_the_kind_of_noise_of_a_network_without_any_does_not_matter():
    needs = Needs(
        tables.StitchingRow,
        columns=("back_noise_ratio", "epoch", "test_accuracy"),
        conditions=(),
        optional=("back_noise_kind", "seed"),
    )
    row = {"back_noise_ratio": 0.0, "epoch": 1, "test_accuracy": 0.5}
    kinds = ("uniform", "pairflip")
    rows = [row | {"back_noise_kind": kind, "seed": seed} for seed, kind in enumerate(kinds)]
    assert curve(needs.select(rows), "epoch", "test_accuracy").n == [2]
    noisy = needs.select([row | {"back_noise_ratio": 0.5} for row in rows])
    assert [row["back_noise_kind"] for row in noisy] == [*kinds]
    with pytest.raises(MemtoolError, match="differ in back_noise_kind"):
        curve(noisy, "epoch", "test_accuracy")


def test_rows_without_a_value_are_not_usable():
    rows = [{"cka": None}, {"cka": 0.0}]
    assert usable(rows, "cka") == [{"cka": 0.0}]
    with pytest.raises(MemtoolError, match="no row has a value in the column cka"):
        usable(rows[:1], "cka")


def test_groups_and_positions_keep_the_order_of_first_appearance():
    rows = [{"layer": name} for name in ("conv1", "block2", "conv1", "block1")]
    assert list(groups(rows, lambda row: row["layer"])) == ["conv1", "block2", "block1"]
    assert [len(group) for group in groups(rows, lambda row: row["layer"]).values()] == [2, 1, 1]
    assert positions(rows, "layer") == {"conv1": 0, "block2": 1, "block1": 2}


def test_names_that_some_networks_lack_are_where_the_others_have_them():
    orders = {
        "a": ["stem", "block2", "fc"],
        "b": ["stem", "block1", "block2"],
        "c": ["pre", "stem"],
    }
    rows = [{"of": of, "layer": layer} for of, layers in orders.items() for layer in layers]
    ordered = in_order(rows, lambda row: row["of"], lambda row: row["layer"])
    assert list(dict.fromkeys(row["layer"] for row in ordered)) == [
        *("pre", "stem", "block1", "block2", "fc"),
    ]
    assert sorted(map(str, ordered)) == sorted(map(str, rows))


def test_a_table_of_another_kind_among_the_rows_is_told_by_its_line():
    rows = [*TABLES[Kind.training], *TABLES[Kind.convergence]]
    first = len(TABLES[Kind.training]) + 1
    with pytest.raises(
        MemtoolError, match=f"training: row {first} has no column loss, .*other rows"
    ):
        draw("training", rows)
    with pytest.raises(MemtoolError, match="whose columns differ"):
        recognize(rows)
