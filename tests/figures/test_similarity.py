"""Figures 1 and 3: CKA to the final model, over epochs or over layers."""

import numpy as np
import pytest

from memtool import MemtoolError
from memtool.figures import draw, recognize

from .examples import (
    EPOCHS,
    LAYERS,
    RATIOS,
    bands,
    cka_row,
    convergence_rows,
    curves,
    divergence_rows,
    legend_labels,
    pair_rows,
    similarity,
    titles,
)

KINDS = ("noise_kind", "reference_noise_kind")


def test_convergence_has_a_panel_per_layer_and_a_curve_per_ratio():
    figure = draw("convergence", convergence_rows())
    assert titles(figure) == LAYERS
    assert legend_labels(figure) == ["0", "25", "67.5"]
    assert figure.legends[0].get_title().get_text() == "noise ratio r (%)"
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("epoch", "CKA to final model")
    for layer, axes in zip(LAYERS, figure.axes, strict=True):
        low, high = axes.get_ylim()
        assert low <= 0 and high >= 1
        for ratio, line in zip(RATIOS, curves(axes).values(), strict=True):
            expected = [similarity(layer, ratio, epoch, 0) for epoch in EPOCHS]
            np.testing.assert_allclose(line.get_xdata(orig=False), EPOCHS)
            np.testing.assert_allclose(line.get_ydata(orig=False), expected)
        assert bands(axes) == []


def test_seeds_become_their_mean_and_a_band_of_one_standard_deviation():
    seeds = (0, 1, 5)
    figure = draw("convergence", convergence_rows(seeds)[::-1])  # in any order of rows
    axes = next(axes for axes in figure.axes if axes.get_title() == "fc")
    values = np.array(
        [[similarity("fc", 0.675, epoch, seed) for seed in seeds] for epoch in EPOCHS]
    )
    np.testing.assert_allclose(curves(axes)["67.5"].get_ydata(orig=False), values.mean(1))
    corners = bands(axes)[-1].get_paths()[0].vertices
    for epoch, expected in zip(EPOCHS, values, strict=True):
        edges = corners[corners[:, 0] == epoch, 1]
        spread = expected.std(ddof=1)
        assert edges.min() == pytest.approx(expected.mean() - spread)
        assert edges.max() == pytest.approx(expected.mean() + spread)


def test_an_empty_value_is_left_out_of_its_curve():
    rows = [row | ({"cka": None} if row["epoch"] == 2 else {}) for row in convergence_rows()]
    for line in curves(draw("convergence", rows).axes[0]).values():
        assert list(line.get_xdata(orig=False)) == [1, 3, 4]


def test_cka_below_zero_stays_in_sight():
    rows = [row | ({"cka": -0.3} if row["epoch"] == 1 else {}) for row in convergence_rows()]
    assert draw("convergence", rows).axes[0].get_ylim()[0] < -0.3


def test_divergence_says_clean_only_of_a_clean_reference():
    clean = draw("divergence", divergence_rows())
    assert clean.get_supylabel() == "CKA to final clean model"
    assert titles(clean) == LAYERS
    other = draw("divergence", convergence_rows(reference_noise_ratio=0.5))
    assert other.get_supylabel() == "CKA to reference model"


def test_a_reference_is_final_unless_a_row_is_of_a_later_epoch():
    rows = [row | {"reference_noise_ratio": 0} for row in divergence_rows()]
    last = max(row["epoch"] for row in rows)
    for epoch, told in ((last, "CKA to final clean model"), (last - 1, "CKA to clean model")):
        figure = draw("divergence", [row | {"reference_epoch": epoch} for row in rows])
        assert figure.get_supylabel() == told


def test_one_epoch_is_drawn_against_the_layers():
    figure = draw("divergence", divergence_rows(seeds=(0, 2), epochs=[4]))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == LAYERS
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", "CKA to final clean model")
    for ratio, line in zip(RATIOS, curves(axes).values(), strict=True):
        assert list(line.get_xdata(orig=False)) == [0, 1, 2]
        expected = [similarity(layer, ratio, 4, 1) for layer in LAYERS]  # 1: the mean seed
        np.testing.assert_allclose(line.get_ydata(orig=False), expected)


def test_checkpoints_from_elsewhere_are_labelled_by_name():
    unknown = {"noise_ratio": None, "epoch": None, "seed": None, "reference_noise_ratio": None}
    long = "folder/" * 9
    rows = [
        cka_row(layer, 0.25, 4, 0) | unknown | {"checkpoint": f"{long}{name}.safetensors"}
        for name in ("_a$b$", "b")
        for layer in LAYERS
    ]
    figure = draw(recognize(rows), rows)
    assert figure.legends[0].get_title().get_text() == "checkpoint"
    first, second = legend_labels(figure)
    assert first.endswith("/_a$b$") and second.endswith("/b")
    assert len(curves(figure.axes[0])) == 2


def test_a_stitched_model_is_not_of_the_run_whose_ends_it_has():
    ends = {"front_noise_ratio": 0.5, "back_noise_ratio": 0.5}
    rows = convergence_rows(noise_ratio=0.5, reference_noise_ratio=0.5)
    assert recognize(rows) == "convergence"
    assert recognize([row | ends for row in rows]) == "supplement"
    other_noise = [row | {"noise_seed": 0, "reference_noise_seed": 1} for row in rows]
    assert recognize(other_noise) == "divergence"


def test_another_order_of_batches_makes_another_run():
    rows = convergence_rows()
    known = [row | {"order_seed": 1, "reference_order_seed": 1} for row in rows]
    assert recognize(known) == "convergence"
    assert recognize([row | {"reference_order_seed": None} for row in known]) == "divergence"


def test_two_checkpoints_at_one_point_are_an_error_that_names_both():
    rows = convergence_rows()
    twin = {"checkpoint": "other.safetensors", "cka": 0.25}
    twins = [row | twin for row in rows if row["noise_ratio"] == 0.25 and row["epoch"] == 2]
    both = r"epoch-2\.safetensors and other\.safetensors would become one point"
    with pytest.raises(MemtoolError, match=both):
        draw("convergence", rows + twins)
    labelled = [row | dict.fromkeys(KINDS, "uniform") for row in rows]
    labelled += [row | dict.fromkeys(KINDS, "pairflip") for row in twins]
    figure = draw("convergence", labelled)
    assert legend_labels(figure) == ["0, -", "25, uniform", "25, pairflip", "67.5, uniform"]


@pytest.mark.parametrize("column, other", [("n", 100), ("data", "svhn"), ("bandwidth", 2.0)])
def test_a_figure_shows_cka_of_one_kind(column, other):
    rows = [row | {"data": "digits", "bandwidth": 1.0} for row in convergence_rows()]
    draw("convergence", rows)
    rows[-1] |= {column: other}
    with pytest.raises(MemtoolError, match=f"the rows differ in {column}"):
        draw("convergence", rows)


def test_an_unknown_epoch_among_known_ones_is_refused():
    rows = convergence_rows()
    rows[0]["epoch"] = None
    with pytest.raises(MemtoolError, match=r"epoch-1\.safetensors: its epoch is unknown"):
        draw("convergence", rows)


def test_convergence_of_a_full_table_of_layers_is_refused():
    with pytest.raises(MemtoolError, match="heatmap"):
        draw("convergence", pair_rows())
