"""Columns: meanings, types, and what a cell may be."""

import pytest

from memtool import tables
from memtool.tables.rows import TABLES


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_each_column_is_explained_and_has_a_type(table):
    for name, column in tables.columns(table).items():
        assert column.meaning and column.meaning[0].islower() | column.meaning[:3].isupper()
        assert not column.meaning.endswith(".")
        assert tables.type_of(table, name) in ("text", "number", "whole number", "true or false")


def test_the_types_of_columns():
    found = {name: tables.type_of(tables.CkaRow, name) for name in ("layer", "epoch", "cka")}
    assert found == {"layer": "text", "epoch": "whole number", "cka": "number"}
    assert tables.type_of(tables.LayerRow, "cut") == "true or false"


@pytest.mark.parametrize(
    "column, cell, expected",
    [
        ("cka", "0.5", 0.5),
        ("cka", 1, 1),
        ("cka", None, None),
        ("epoch", "4.0", 4),
        ("layer", 3, "3"),
        ("layer", "NA", "NA"),
        ("same_as", "NA", None),
        ("same_as", "nan", None),
        ("same_as", float("nan"), None),
        ("front_noise_ratio", "NaN", None),
    ],
)
def test_a_cell_is_what_its_column_says(column, cell, expected):
    found = tables.checked(tables.CkaRow, column, cell)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "column, cell",
    [
        ("cka", "n/a"),
        ("cka", True),
        ("cka", float("inf")),
        ("cka", "1e40"),
        ("cka", [0.5]),
        ("epoch", "4.5"),
        ("layer", "x" * 10_000),
        ("noise_ratio", 37.5),
        ("back_noise_ratio", -0.1),
    ],
)
def test_any_other_cell_is_an_error_in_a_few_words(column, cell):
    with pytest.raises(ValueError) as caught:
        tables.checked(tables.CkaRow, column, cell)
    assert len(str(caught.value)) < 300


def test_a_mean_of_accuracies_may_lie_above_1_by_a_rounding():
    assert tables.checked(tables.TrainingRow, "test_accuracy", 1 + 2**-52) >= 1


def test_percent_are_no_ratio_and_no_accuracy():
    with pytest.raises(ValueError, match=r"^97.3 is outside \[0, 1\]; divide percent by 100$"):
        tables.checked(tables.TrainingRow, "test_accuracy", "97.3")
    with pytest.raises(ValueError, match=r"^973 is outside \[0, 1\]$"):
        tables.checked(tables.TrainingRow, "test_accuracy", 973)
