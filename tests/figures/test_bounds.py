"""The floor and the ceiling of CKA."""

import numpy as np
import pytest

from memtool.figures import as_options, draw, points

from .examples import EPOCHS, LAYERS, RATIOS, curves, divergence_rows, legend_labels

CEILING, FLOOR = "ceiling: second clean network", "floor: unrelated features"


def null(layer, ratio):
    return 0.1 + 0.05 * LAYERS.index(layer) + 0.01 * ratio


def ceiling(layer, epoch, seed=0):
    return 0.95 - 0.02 * LAYERS.index(layer) + 0.001 * epoch + 0.01 * seed


def rows_with_bounds(seeds=(0,), epochs=EPOCHS):
    rows = divergence_rows(seeds)
    second = [
        row
        | {"checkpoint": f"again-s{row['seed']}-{row['epoch']}", "order_seed": 1}
        | {"cka": ceiling(row["layer"], row["epoch"], row["seed"])}
        for row in rows
        if row["noise_ratio"] == 0 and row["epoch"] in epochs
    ]
    return [row | {"cka_null": null(row["layer"], row["noise_ratio"])} for row in rows + second]


def test_over_epochs_each_panel_has_its_ceiling_and_floor():
    figure = draw("divergence", rows_with_bounds())
    assert legend_labels(figure) == ["0", "25", "67.5", CEILING, FLOOR]
    for layer, axes in zip(LAYERS, figure.axes, strict=True):
        lines = curves(axes)
        assert lines[CEILING].get_linestyle() == ":"
        assert list(lines[CEILING].get_xdata(orig=False)) == EPOCHS
        expected = [ceiling(layer, epoch) for epoch in EPOCHS]
        np.testing.assert_allclose(lines[CEILING].get_ydata(orig=False), expected)
        floor = np.mean([null(layer, ratio) for ratio in RATIOS])
        np.testing.assert_allclose(lines[FLOOR].get_ydata(orig=False), floor)
        np.testing.assert_allclose(lines["0"].get_ydata(orig=False), 0.9)  # without the second


def test_a_second_network_of_one_epoch_is_a_level_line():
    for axes in draw("divergence", rows_with_bounds(epochs=[4])).axes:
        line = curves(axes)[CEILING]
        assert list(line.get_xdata(orig=False)) == [0, 1]  # of the panel's width
        assert len(set(line.get_ydata(orig=False))) == 1


@pytest.mark.parametrize("options", [{}, {"epochs": "last"}], ids=["epochs", "last"])
def test_over_layers_they_are_those_of_the_last_epoch(options):
    figure = draw("divergence", rows_with_bounds(seeds=(0, 2)), as_options(x="layer", **options))
    for axes, ratio in zip(figure.axes, [RATIOS] if options else RATIOS, strict=True):
        lines = curves(axes)
        expected = [ceiling(layer, EPOCHS[-1], seed=1) for layer in LAYERS]  # 1: the mean seed
        np.testing.assert_allclose(lines[CEILING].get_ydata(orig=False), expected)
        floor = [np.mean([null(layer, r) for r in np.atleast_1d(ratio)]) for layer in LAYERS]
        np.testing.assert_allclose(lines[FLOOR].get_ydata(orig=False), floor)


def test_ratios_and_layers_that_are_chosen_keep_their_ceiling():
    options = as_options(ratios=0.25, layers="fc")
    figure = draw("divergence", rows_with_bounds(), options)
    assert legend_labels(figure) == ["25", CEILING, FLOOR]


def test_clean_networks_alone_are_curves():
    rows = [row for row in rows_with_bounds() if row.get("order_seed")]
    assert legend_labels(draw("divergence", rows)) == ["0", FLOOR]


def test_a_floor_of_zero_is_the_axis():
    rows = [row | {"cka_null": 0.0, "estimator": "unbiased"} for row in divergence_rows()]
    assert FLOOR not in legend_labels(draw("divergence", rows))
    assert FLOOR not in legend_labels(draw("divergence", divergence_rows()))


def test_the_epochs_that_are_asked_for_hold_for_the_ceiling_too():
    figure = draw("divergence", rows_with_bounds(), as_options(epochs="1,2", x="epoch"))
    assert all(list(curves(axes)[CEILING].get_xdata()) == [1, 2] for axes in figure.axes)
    last = draw("divergence", rows_with_bounds(epochs=[4]), as_options(epochs="1,2", x="epoch"))
    assert all(list(curves(axes)[CEILING].get_xdata()) == [0, 1] for axes in last.axes)  # level


def test_bounds_that_are_not_drawn_are_not_listed():
    rows = [row | {"layer": f"layer1.downsample.{row['layer']}"} for row in rows_with_bounds()]
    figure = draw("divergence", rows, as_options(x="layer", epochs="last"))
    assert not {CEILING, FLOOR} & {*legend_labels(figure)}


def test_the_values_of_a_floor_are_not_those_of_seeds():
    """They are of several noise ratios."""
    figure = draw("divergence", rows_with_bounds(), as_options(x="layer", epochs="last"))
    spread = {(row["curve"] == FLOOR, row["deviation"], row["n"]) for row in points(figure)}
    assert spread == {(True, None, None), (False, None, 1)}
