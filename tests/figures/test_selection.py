"""The rows that one asks for, by layer, noise ratio and epoch; tables of both kinds of CKA."""

import pytest

from memtool import MemtoolError
from memtool.figures import as_options, draw, recognize
from memtool.figures.drawing import FIGURES

from .examples import (
    LAYERS,
    convergence_rows,
    divergence_rows,
    legend_labels,
    pair_rows,
    stitch_rows,
    titles,
    training_rows,
)


def chosen(kind, rows, **options):
    design = FIGURES[kind]
    return design.choose(design.needs.select(rows), as_options(**options))


def values(rows, column):
    return sorted({row[column] for row in rows})


def test_layers_ratios_and_epochs_are_chosen():
    rows = convergence_rows()
    assert values(chosen("convergence", rows, layers="conv?,fc"), "layer") == ["conv1", "fc"]
    assert values(chosen("convergence", rows, layers="all"), "layer") == sorted(LAYERS)
    assert values(chosen("convergence", rows, ratios="0,67.5%"), "noise_ratio") == [0, 0.675]
    assert values(chosen("convergence", rows, epochs=[2, "last"]), "epoch") == [2, 4]
    assert values(chosen("convergence", rows, epochs="all"), "epoch") == [1, 2, 3, 4]
    assert len(chosen("convergence", rows)) == len(rows)
    assert values(chosen("training", training_rows(), epochs=3), "epoch") == [3]
    assert values(chosen("heatmap", pair_rows(), layers="fc"), "reference_layer") == ["fc"]


def test_the_ratio_of_a_stitched_model_is_that_of_its_noisy_end():
    found = chosen("stitching", stitch_rows(), ratios=0.25, layers="fc")
    ends = [(r["direction"], r["front_noise_ratio"], r["back_noise_ratio"]) for r in found]
    assert ends == [("forward", 0.25, 0), ("reverse", 0, 0.25), ("control", 0.25, 0.25)]


def test_the_last_epoch_is_that_of_each_run():
    rows = [r for r in convergence_rows() if r["noise_ratio"] or r["epoch"] < 3]
    found = chosen("convergence", rows, epochs="last")
    assert {(row["noise_ratio"], row["epoch"]) for row in found} == {(0, 2), (0.25, 4), (0.675, 4)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "conv9"}, r"no layer matches 'conv9'; .* conv1, block2, fc"),
        ({"ratios": 0.5}, "no row has the noise ratio 50%; there are 0%, 25%, 67.5%"),
        ({"epochs": 7}, "no row is of epoch 7; there are 1, 2, 3, 4"),
    ],
)
def test_what_is_not_in_the_table_is_refused_with_what_is(options, message):
    with pytest.raises(MemtoolError, match=message):
        draw("convergence", convergence_rows(), as_options(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": "25"}, "ratio 25 is outside .*; did you mean 25%?"),
        ({"ratios": "much"}, "'much' is not a ratio"),
        ({"epochs": "1,first"}, "'first' is not an epoch"),
        ({"width": "wide"}, "width 'wide': it is one of column, page, or a number of inches"),
        ({"width": 400}, "width 400: it is from 1.5 to 40 inches"),
        ({"width": "nan"}, "width nan: it is from"),
    ],
)
def test_options_that_are_none_are_refused(options, message):
    with pytest.raises(MemtoolError, match=message):
        as_options(**options)


def test_an_option_of_another_figure_is_refused():
    with pytest.raises(MemtoolError, match="training has no option layers; it takes ratios, ep"):
        draw("training", training_rows(), as_options(layers="fc"))


def mixed_rows():
    """Each checkpoint compared with its own run and with the clean one: the clean run's once."""
    return convergence_rows() + [row for row in divergence_rows() if row["noise_ratio"]]


def test_a_table_of_both_kinds_gives_each_its_rows():
    rows = mixed_rows()
    for row in rows:
        if row["reference_noise_ratio"] == 0:
            row["reference"] = "clean.safetensors"
    with pytest.raises(MemtoolError, match="name the figure, convergence or divergence"):
        recognize(rows)
    own, clean = chosen("convergence", rows), chosen("divergence", rows)
    assert len(own) == len(clean) == len(convergence_rows())
    assert {row["reference_noise_ratio"] == row["noise_ratio"] for row in own} == {True}
    assert values(clean, "reference") == ["clean.safetensors"]
    assert values(clean, "noise_ratio") == [0, 0.25, 0.675]  # the clean run's own are in both
    for kind in ("convergence", "divergence"):
        figure = draw(kind, rows)
        assert (titles(figure), legend_labels(figure)) == (LAYERS, ["0", "25", "67.5"])


def test_beside_clean_references_noisy_ones_are_left_out_with_a_note(caplog):
    caplog.set_level("INFO", "memtool")
    crossed = convergence_rows(reference="noisy.safetensors", reference_noise_ratio=0.25)
    found = chosen("divergence", [*divergence_rows(), *crossed])
    assert values(found, "reference") == ["clean.safetensors"]
    assert "leaves out that to noisy ones" in caplog.text
    assert values(chosen("divergence", crossed), "reference") == ["noisy.safetensors"]


def test_a_kind_of_which_there_are_no_rows_is_refused():
    with pytest.raises(MemtoolError, match="all rows compare a checkpoint with its own run"):
        draw("divergence", convergence_rows())
    noisy = [row for row in divergence_rows() if row["noise_ratio"]]
    with pytest.raises(MemtoolError, match="no row compares a checkpoint with the final model of"):
        draw("convergence", noisy)


def test_without_noise_its_seed_makes_no_other_run_but_another_order_of_batches_does():
    rows = [row for row in convergence_rows() if not row["noise_ratio"]]
    assert recognize([row | {"reference_noise_seed": 5} for row in rows]) == "convergence"
    again = [row | {"order_seed": 1} for row in rows]
    assert recognize(again) == "divergence"
    with pytest.raises(MemtoolError, match="no row compares a checkpoint with the final model of"):
        draw("convergence", again)
