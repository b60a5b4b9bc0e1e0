"""CKA of stitched models to the clean one, layer by layer."""

import logging

import numpy as np
import pytest

from memtool import MemtoolError
from memtool.figures import Options, draw, recognize
from memtool.figures.supplement import NEEDS, choose

from .examples import (
    LAYERS,
    bands,
    cka_row,
    convergence_rows,
    divergence_rows,
    legend_labels,
    supplement_cka,
    supplement_row,
    supplement_rows,
    titles,
)

TITLES = ["front of r = {} %, clean back", "clean front, back of r = {} %"]
CUTS = ["k = 1 (conv1)", "k = 2 (block2)"]


def drawn(axes):
    """The curves of a panel: whether markers are open, and the points, by label."""
    return {
        str(line.get_label()): (
            line.get_markerfacecolor() == "white",
            list(zip(*(map(float, values) for values in line.get_data(orig=False)), strict=True)),
        )
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def points(part, cut, front, back, layers):
    return [(i, pytest.approx(supplement_cka(cut, part, i, front, back))) for i in layers]


def test_a_panel_for_each_pair_of_ends_has_a_curve_before_and_after_each_cut():
    figure = draw("supplement", supplement_rows())
    assert titles(figure) == [
        *(title.format(25) for title in (*TITLES, "front and back of r = {} %")),
        *(title.format(50) for title in (*TITLES, "front and back of r = {} %")),
    ]
    assert figure.get_supylabel() == "CKA to clean model"
    extra = ["before the cut", "after the cut", "floor: unrelated features"]
    assert legend_labels(figure) == [*CUTS, *extra]
    ends = [(r * a, r * b) for r in (0.25, 0.5) for a, b in ((1, 0), (0, 1), (1, 1))]
    for axes, (front, back) in zip(figure.axes, ends, strict=True):
        found = drawn(axes)
        for cut, label in enumerate(CUTS):
            before, after = range(cut + 1), range(cut, len(LAYERS))
            is_open = points("front", cut, front, back, before)
            assert found[f"{label}, before the cut"] == (True, is_open)
            assert found[label] == (False, points("back", cut, front, back, after))
    assert [text.get_text() for text in figure.axes[-1].get_xticklabels()] == LAYERS


def test_a_direction_keeps_its_column_where_a_ratio_lacks_the_others():
    clean = [supplement_row(0, "back", layer, 0.0, 0.0, 0) for layer in range(len(LAYERS))]
    rows = [*clean, *supplement_rows(ratios=[0.25])]
    figure = draw("supplement", rows, Options(ratios=(0.0, 0.25)))
    places = [axes.get_subplotspec() for axes in figure.axes]
    assert titles(figure)[0] == "clean front and back"
    assert [(at.rowspan.start, at.colspan.start) for at in places] == [
        (0, 2),
        (1, 0),
        (1, 1),
        (1, 2),
    ]
    labels = [[text.get_visible() for text in axes.get_yticklabels()] for axes in figure.axes]
    assert [any(one) for one in labels] == [True, True, False, False]


def test_a_step_leads_from_before_the_cut_to_after_it():
    axes = draw("supplement", supplement_rows(cuts=[1])).axes[0]
    (step,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    values = [supplement_cka(1, part, 1, 0.25, 0.0) for part in ("front", "back")]
    assert list(step.get_xdata()) == [1, 1]
    np.testing.assert_allclose(step.get_ydata(), values)


def test_seeds_become_their_mean_with_a_band():
    axes = draw("supplement", supplement_rows(seeds=(0, 1, 2))).axes[0]
    mean = [supplement_cka(0, "back", layer, 0.25, 0.0, seed=1) for layer in range(3)]
    assert drawn(axes)[CUTS[0]] == (False, [(i, pytest.approx(y)) for i, y in enumerate(mean)])
    assert len(bands(axes)) == 4
    assert "mean ± SD, n = 3" in legend_labels(axes.figure)


def test_two_models_of_one_cut_and_seed_are_an_error_that_names_both():
    rows = supplement_rows()
    others = [row | {"checkpoint": "linear.safetensors"} for row in rows[:4]]
    with pytest.raises(MemtoolError, match=r"conv1\.safetensors and linear\.safetensors would be"):
        draw("supplement", rows + others)
    with pytest.raises(MemtoolError, match="the table has two values of cka"):
        draw("supplement", [*rows, rows[0] | {"cka": 0.123}])


def test_noisy_networks_alone_are_dashed_beside_the_models_made_of_them():
    alone = [
        cka_row(layer, ratio, 4, 0, reference="s0/r0.safetensors", reference_noise_ratio=0.0)
        for ratio in (0.0, 0.25, 0.5)
        for layer in LAYERS
    ]
    earlier = [{**row, "epoch": row["epoch"] - 1, "cka": 0.3} for row in alone]
    own = [{**row, "reference": row["checkpoint"], "reference_noise_ratio": 0.25} for row in alone]
    rows = supplement_rows() + earlier + own + alone  # as a table of whole runs has them
    assert recognize(rows) == "supplement"
    figure = draw("supplement", rows)
    assert "noisy model" in legend_labels(figure)
    for axes, ratio in zip(figure.axes, [0.25] * 3 + [0.5] * 3, strict=True):
        expected = [row["cka"] for row in alone if row["noise_ratio"] == ratio]
        found = drawn(axes)["noisy model"][1]
        assert found == [(i, pytest.approx(y)) for i, y in enumerate(expected)]


def test_stitched_models_are_no_points_of_training_runs():
    stitched = supplement_rows()
    own = divergence_rows()
    assert recognize(own) == "divergence" and recognize(own + stitched) == "supplement"
    alone, both = (draw("divergence", rows) for rows in (own, own + stitched))
    assert [[line.get_xydata().tolist() for line in axes.lines] for axes in alone.axes] == [
        [line.get_xydata().tolist() for line in axes.lines] for axes in both.axes
    ]
    for kind in ("divergence", "convergence"):
        with pytest.raises(MemtoolError, match="stitched models: draw them as supplement"):
            draw(kind, stitched)
    controls = [row for row in stitched if row["front_noise_ratio"] == row["back_noise_ratio"]]
    assert recognize(controls) == "supplement"
    with pytest.raises(MemtoolError, match="no row is of a stitched model"):
        draw("supplement", convergence_rows())


def chosen(rows, **options):
    return choose(NEEDS.select(rows), Options(**options))


def test_of_many_ratios_a_few_are_shown_and_the_others_told(caplog):
    caplog.set_level(logging.INFO)
    many = supplement_rows(ratios=[0.05, 0.1, 0.15, 0.2, 0.25, 0.375, 0.5, 0.675])
    shown = {row["front_noise_ratio"] for row in chosen(many)} - {0.0}
    assert shown == {0.05, 0.15, 0.375, 0.675}
    told = "of 8 noise ratios, 5%, 15%, 37.5%, 67.5%; --ratios chooses others"
    assert caplog.messages == [f"supplement: {told}"]
    clean = supplement_rows(ratios=[0.0])
    assert len(chosen(clean)) == len(clean)
    some = supplement_rows(ratios=[0.5])
    assert len(chosen(clean + some)) == len(some)
    assert caplog.messages[1:] == ["supplement: of 2 noise ratios, 50%; --ratios chooses others"]
    assert len(chosen(clean + some, ratios=(0.0,))) == len(clean)
    ends = {(r["front_noise_ratio"], r["back_noise_ratio"]) for r in chosen(many, ratios=(0.1,))}
    assert ends == {(0.1, 0.0), (0.0, 0.1), (0.1, 0.1)}
    assert {row["reference_layer"] for row in chosen(many, layers=("fc",))} == {"fc"}


def test_layers_that_are_one_tensor_have_one_place():
    """In the back, the layer at the cut is the stitching layer's output, and nothing else is."""
    rows = [
        supplement_row(1, "front", 0, 0.5, 0.0),
        supplement_row(1, "front", 1, 0.5, 0.0) | {"layer": "front.block2.relu"},
        supplement_row(1, "front", 1, 0.5, 0.0),
        supplement_row(1, "back", 1, 0.5, 0.0) | {"same_as": "stitching"},
        supplement_row(1, "back", 2, 0.5, 0.0) | {"same_as": "back"},
    ]
    rows[1] |= {"reference_layer": "block2.relu", "same_as": "front.block2", "cka": 0.3}
    axes = draw("supplement", rows).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == LAYERS
    assert len(drawn(axes)["k = 1 (block2), before the cut"][1]) == 2


def test_layers_are_in_order_even_where_the_first_model_lacks_some():
    skips = [row for row in supplement_rows(cuts=[0]) if row["reference_layer"] != "block2"]
    skips = [row | {"back_layer": "block2", "checkpoint": "a"} for row in skips]
    axes = draw("supplement", skips + supplement_rows(cuts=[1])).axes[-1]
    assert [text.get_text() for text in axes.get_xticklabels()] == LAYERS
