"""Means and deviations, and how runs are named and styled."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from memtool import MemtoolError
from memtool.figures.curves import curve, draw_runs, require_epoch, run_styles, runs_title

from .examples import bands, convergence_rows


def test_a_curve_is_the_mean_and_the_sample_deviation_at_each_x_in_order():
    points = [(3, 5.0), (1, 1.0), (3, 2.0), (2, 4.0), (3, 2.0)]
    found = curve([{"x": x, "y": y} for x, y in points], "x", "y")
    assert found.x == [1, 2, 3]
    assert found.mean == [1.0, 4.0, 3.0]
    np.testing.assert_allclose(found.spread, [0, 0, np.sqrt(3)])


def test_empty_cells_do_not_count():
    found = curve([{"x": 1, "y": None}, {"x": 1, "y": 0.0}, {"x": 2, "y": None}], "x", "y")
    assert (found.x, found.mean) == ([1], [0.0])
    assert curve([], "x", "y").x == []


def test_runs_are_ratios_in_order_then_checkpoints():
    rows = [
        {"noise_ratio": ratio, "checkpoint": f"{name}.safetensors"}
        for ratio, name in [(None, "b"), (0.675, "c"), (None, "a"), (0.0, "d"), (0.0, "e")]
    ]
    styles = run_styles(rows)
    assert list(styles) == [0.0, 0.675, "a.safetensors", "b.safetensors"]
    assert [style["label"] for style in styles.values()] == ["0", "67.5", "a", "b"]
    assert len({(style["color"], style["marker"]) for style in styles.values()}) == 4
    assert runs_title(styles) == "noise ratio r (%) or checkpoint"


def test_a_run_without_values_has_no_line_and_one_of_one_seed_no_band():
    rows = convergence_rows(seeds=(0,))
    rows = [row | ({"cka": None} if row["noise_ratio"] == 0.25 else {}) for row in rows]
    axes = Figure().subplots()
    draw_runs(axes, [row for row in rows if row["layer"] == "fc"], "epoch", "cka", run_styles(rows))
    assert [line.get_label() for line in axes.lines] == ["0", "67.5"]
    assert bands(axes) == []


def test_an_unknown_epoch_is_refused_by_name():
    rows = [{"checkpoint": "a", "epoch": 0}, {"checkpoint": "b", "epoch": None}]
    require_epoch(rows[:1])
    with pytest.raises(MemtoolError, match="^b: its epoch is unknown"):
        require_epoch(rows)
