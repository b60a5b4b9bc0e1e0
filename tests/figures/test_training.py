"""Training curves."""

import numpy as np

from memtool.figures import draw
from memtool.figures.training import TITLES

from .examples import EPOCHS, curves, legend_labels, titles, training_rows


def test_training_has_a_panel_per_measure():
    figure = draw("training", training_rows(seeds=(0, 1)))
    assert titles(figure) == list(TITLES.values())
    assert figure.get_supxlabel() == "epoch"
    assert legend_labels(figure) == ["0", "25", "67.5", "mean ± SD, n = 2"]
    loss, given, _, memorized, _ = map(curves, figure.axes)
    np.testing.assert_allclose(loss["25"].get_ydata(orig=False), [2 / e + 0.5 for e in EPOCHS])
    np.testing.assert_allclose(given["25"].get_ydata(orig=False), [1 - 0.25 / e for e in EPOCHS])
    assert list(memorized) == ["25", "67.5"]  # nothing is mislabelled at 0


def test_training_without_noise_has_no_panel_for_memorization():
    figure = draw("training", training_rows(ratios=[0.0]))
    assert len(figure.axes) == len(TITLES) - 1
    assert not any("memorization" in title for title in titles(figure))


def test_a_single_epoch_is_the_only_tick():
    figure = draw("training", [row for row in training_rows() if row["epoch"] == EPOCHS[1]])
    figure.draw_without_rendering()
    axis = figure.axes[0].xaxis
    low, high = axis.get_view_interval()
    assert [tick for tick in axis.get_ticklocs() if low <= tick <= high] == [EPOCHS[1]]
