"""Which figure a table calls for, and what every figure refuses."""

import io

import pytest
from matplotlib.figure import Figure

from memtool import MemtoolError
from memtool.checkpoints.provenance import NOISE, Provenance
from memtool.figures import Kind, Options, draw, recognize, save
from memtool.figures.drawing import FIGURES
from memtool.figures.training import TITLES

from .examples import (
    convergence_rows,
    divergence_rows,
    each_kind,
    stitch_rows,
    supplement_rows,
    training_rows,
)


def svg(figure: Figure) -> bytes:
    stream = io.BytesIO()
    save(figure, stream, "svg")
    return stream.getvalue()


@each_kind
def test_each_kind_is_recognized_and_drawn(kind, rows):
    assert recognize(rows) is kind
    assert isinstance(draw(kind, rows), Figure)


@pytest.mark.parametrize(
    "changes",
    [
        {"reference_noise_ratio": 0.0},
        {"reference_seed": 7},
        {"noise_ratio": None, "reference_noise_ratio": None},
    ],
    ids=["clean reference", "other seed", "unknown runs"],
)
def test_a_reference_from_another_run_makes_a_divergence(changes):
    assert recognize(convergence_rows(**changes)) is Kind.divergence


def test_corresponding_layers_with_other_names_are_no_heatmap():
    rows = [row | {"reference_layer": f"net.{row['layer']}"} for row in divergence_rows()]
    assert recognize(rows) is Kind.divergence


@pytest.mark.parametrize("rows", [[], [{"apples": 1, "pears": 2}]], ids=["no rows", "others"])
def test_an_unknown_table_names_its_columns_and_the_kinds(rows):
    with pytest.raises(MemtoolError) as error:
        recognize(rows)
    expected = [*(rows[0] if rows else ["(none)"]), *Kind]
    assert [word for word in expected if word not in str(error.value)] == []


@each_kind
def test_a_missing_column_is_named(kind, rows):
    needs = FIGURES[kind].needs
    for column in needs.columns:
        without = [{k: v for k, v in row.items() if k != column} for row in rows]
        with pytest.raises(MemtoolError, match=f"{kind}: the table has no column {column} "):
            draw(kind, without)


@each_kind
def test_a_table_without_rows_or_values_is_refused(kind, rows):
    values = [*TITLES, "cka"]
    empty = [row | {name: None for name in values if name in row} for row in rows]
    with pytest.raises(MemtoolError, match="no row has a value"):
        draw(kind, empty)
    with pytest.raises(MemtoolError, match="no rows"):
        draw(kind, [])


@each_kind
def test_conditions_that_a_mean_would_hide_are_refused(kind, rows):
    needs = FIGURES[kind].needs
    for name in needs.conditions:
        mixed = [row | {name: "one"} for row in rows[:-1]] + [rows[-1] | {name: "other"}]
        with pytest.raises(MemtoolError, match=rf"differ in {name} \(one, other\)"):
            draw(kind, mixed)


@each_kind
def test_columns_that_are_not_declared_change_nothing(kind, rows):
    """A renamed column breaks the declaration (test_rows.py), so it never breaks just a figure."""
    needs = FIGURES[kind].needs
    rows = [row | {"remark": i} for i, row in enumerate(rows)]
    declared = [{name: row[name] for name in needs.names if name in row} for row in rows]
    assert recognize(declared) is kind
    assert svg(draw(kind, declared)) == svg(draw(kind, rows))


TWO_SEEDS = {
    "training": training_rows(seeds=(0, 1)),
    "convergence": convergence_rows(seeds=(0, 1)),
    "divergence": divergence_rows(seeds=(0, 1)),
    "stitching": stitch_rows(seeds=(0, 1)),
    "supplement": supplement_rows(seeds=(0, 1)),
}


@pytest.mark.parametrize("kind", TWO_SEEDS)
def test_clean_runs_with_and_without_a_label_file_are_of_one_condition(kind):
    """The kind and the seed of the noise are those of the file, even at a ratio of 0."""

    def noise(row, end, has_file):
        """The columns that say the noise of a network, with a label file if it is noisy or so."""
        ratio = row[f"{end}noise_ratio"]
        kind, seed = ("uniform", 7) if ratio or has_file else (None, None)
        return {"noise_ratio": ratio, "noise_kind": kind, "noise_seed": seed}

    def with_noise(row, has_file):
        ends = [end for end in ("front_", "back_", "reference_", "") if f"{end}noise_ratio" in row]
        found = {end: noise(row, end, has_file) for end in ends}
        if "front_layer" in row and "" in ends:  # a stitched model, as cka has it
            own = Provenance.of({"front": found["front_"], "back": found["back_"]})
            found[""] = {name: getattr(own, name) for name in NOISE}
        return row | {f"{end}{name}": one for end in ends for name, one in found[end].items()}

    def points(has_file):
        rows = TWO_SEEDS[kind]
        own = "reference_seed" if kind == "supplement" else "seed"
        return draw(kind, [with_noise(row, has_file[row[own]]) for row in rows]).points

    assert points([True, False]) == points([False, False]) == points([True, True])


def test_a_kind_may_be_named_as_text():
    assert svg(draw("training", training_rows())) == svg(draw(Kind.training, training_rows()))
    with pytest.raises(MemtoolError, match="no figure 'pie'; there are convergence, "):
        draw("pie", training_rows())


def test_only_stitching_has_a_control():
    with pytest.raises(MemtoolError, match="training has no option net_of_control; it takes rat"):
        draw("training", training_rows(), Options(net_of_control=True))
