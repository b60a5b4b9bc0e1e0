"""Means and deviations, and how runs are named and styled."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from memtool import MemtoolError
from memtool.figures import as_options, draw, points
from memtool.figures.curves import curve, draw_runs, require_epoch, run_styles, runs_title
from memtool.figures.style import Drawing

from .examples import (
    EPOCHS,
    LAYERS,
    bands,
    convergence_rows,
    curves,
    each_kind,
    legend_labels,
    similarity,
)


def test_a_curve_is_the_mean_and_the_sample_deviation_at_each_x_in_order():
    points = [(3, 5.0), (1, 1.0), (3, 2.0), (2, 4.0), (3, 2.0)]
    found = curve([{"x": x, "y": y, "seed": i} for i, (x, y) in enumerate(points)], "x", "y")
    assert found.x == [1, 2, 3]
    assert found.mean == [1.0, 4.0, 3.0]
    np.testing.assert_allclose(found.spread, [0, 0, np.sqrt(3)])
    assert found.n == [1, 1, 3]


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
    assert [one.noise for one in styles] == [0.0, 0.675, "a.safetensors", "b.safetensors"]
    assert [style["label"] for style in styles.values()] == ["0", "67.5", "a", "b"]
    assert len({(style["color"], style["marker"]) for style in styles.values()}) == 4
    assert runs_title(styles) == "noise ratio r (%) or checkpoint"


def test_a_run_without_values_has_no_line_and_one_of_one_seed_no_band():
    rows = convergence_rows(seeds=(0,))
    rows = [row | ({"cka": None} if row["noise_ratio"] == 0.25 else {}) for row in rows]
    axes = Drawing().subplots()
    draw_runs(axes, [row for row in rows if row["layer"] == "fc"], "epoch", "cka", run_styles(rows))
    assert [line.get_label() for line in axes.lines] == ["0", "67.5"]
    assert bands(axes) == []


def test_runs_are_told_apart_by_no_more_than_needed():
    def row(model=None, ratio=None):
        return {"checkpoint": "s", "noise_ratio": ratio, "model": model}

    def labels(*rows):
        return [style["label"] for style in run_styles(rows).values()]

    assert labels(row("m", 0.5), row("n", 0.5)) == ["50, m", "50, n"]
    assert labels(row("m", 0.5), row("n", 0.0)) == ["0", "50"]
    assert labels(row(), row(ratio=0.5)) == ["50", "s"]
    assert runs_title(run_styles([row(), row(ratio=0.5)])) == "noise ratio r (%) or checkpoint"


def test_one_value_for_each_seed_and_what_only_repeats_a_row_counts_once():
    rows = [{"checkpoint": f"s{seed}", "seed": seed, "x": 1, "y": float(seed)} for seed in (0, 2)]
    assert curve([*rows, *rows, rows[0]], "x", "y").mean == [1.0]
    assert curve([row | {"seed": 0, "noise_seed": row["seed"]} for row in rows], "x", "y").mean == [
        1.0
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "b"}, r"^a and b would become one point.*\(layer fc, epoch 3, seed 7\)"),
        ({"checkpoint": "b", "y": 0.5}, "^a and b would become one point"),
        ({"reference": "q"}, "^p and q would become one point"),
        ({}, r"^a, p: the table has two values of y \(0.5 and 0.25\) for the same seeds"),
        ({"n": 200}, r"they differ in n \(100 and 200\): make a table for each"),
    ],
    ids=["checkpoints", "though equal", "references", "nothing", "a condition"],
)
def test_nothing_but_seeds_is_averaged_over(change, message):
    row = {"checkpoint": "a", "reference": "p", "layer": "fc", "epoch": 3, "seed": 7, "n": 100}
    with pytest.raises(MemtoolError, match=message):
        curve([row | {"x": 1, "y": 0.5}, row | {"x": 1, "y": 0.25} | change], "x", "y")


@pytest.mark.parametrize("column", ["model", "front_model", "connector", "back_noise_kind"])
def test_different_networks_are_not_averaged_whatever_their_seeds(column):
    row = {"front": "a", "back": "p", "seed": 0, "x": 1, "y": 0.5}
    rows = [row | {column: "m"}, row | {"front": "b", "seed": 1, column: "n"}]
    message = rf"^a and p, as well as b and p, would .* differ in {column} \('?m'? and '?n'?\)"
    with pytest.raises(MemtoolError, match=message):
        curve(rows, "x", "y")
    assert curve([row | {column: "n"} for row in rows], "x", "y").n == [2]


def test_an_unknown_epoch_is_refused_by_name():
    rows = [{"checkpoint": "a", "epoch": 0}, {"checkpoint": "b", "epoch": None}]
    require_epoch(rows[:1])
    with pytest.raises(MemtoolError, match="^b: its epoch is unknown"):
        require_epoch(rows)


def test_a_message_about_names_without_end_is_short():
    row = {"checkpoint": "a" * 4000, "layer": "b" * 4000, "x": 1, "y": 0.5}
    with pytest.raises(MemtoolError) as error:
        curve([row, row | {"checkpoint": "c" * 4000}], "x", "y")
    assert len(str(error.value)) < 500


def test_markers_are_at_the_same_epochs_in_all_panels_and_never_cut_off():
    rows = convergence_rows(epochs=range(1, 31))
    figure = draw("convergence", [row for row in rows if row["noise_ratio"] or row["epoch"] > 4])
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert low < 0 and high > 1 and len(axes.get_yticks()) > 3
        for name, line in curves(axes).items():
            marked = line.get_xdata(orig=False)[line.get_markevery()]
            assert list(marked) == [1, 7, 13, 18, 24, 30][1 if name == "0" else 0 :]
            assert not line.get_clip_on()


def test_the_legend_says_what_a_band_shows_and_of_how_many():
    labels = legend_labels(draw("convergence", convergence_rows(seeds=(0, 1, 2))))
    assert labels == ["0", "25", "67.5", "mean ± SD, n = 3"]
    rows = convergence_rows(seeds=(0, 1, 2))
    some = [row for row in rows if row["seed"] < 2 or row["noise_ratio"]]
    assert legend_labels(draw("convergence", some))[-1] == "mean ± SD, n = 2–3"


def test_runs_of_one_ratio_share_its_colour_and_differ_in_their_lines():
    rows = [
        {"noise_ratio": 0.5, "checkpoint": kind, "noise_kind": kind}
        for kind in ("uniform", "pairflip")
    ]
    first, second = run_styles(rows).values()
    assert first["color"] == second["color"] and first["linestyle"] != second["linestyle"]


def test_the_points_of_a_figure_are_what_its_curves_show():
    seeds = (0, 1, 5)
    found = points(draw("convergence", convergence_rows(seeds), as_options(x="layer")))
    point = next(p for p in found if (p["panel"], p["curve"], p["x"]) == ("r = 25 %", "3", "fc"))
    values = [similarity("fc", 0.25, 3, seed) for seed in seeds]
    assert (point["measure"], point["n"]) == ("cka", 3)
    np.testing.assert_allclose(point["value"], np.mean(values))
    np.testing.assert_allclose(point["deviation"], np.std(values, ddof=1))
    assert len(found) == 3 * len(EPOCHS) * 3  # panels, curves, layers


@each_kind
def test_every_figure_knows_its_points(kind, rows):
    found = points(draw(kind, rows))
    measured = {"stitching": "test_accuracy", "training": "loss"}.get(kind, "cka")
    assert {p["n"] for p in found if p["measure"] == measured} == {1}
    assert any(point["measure"] == measured for point in found)
    assert points(Figure()) == []


def test_checkpoints_of_equal_names_are_told_apart():
    names = [f"results/{way}/checkpoints/resnet18_best_validation_accuracy" for way in ("a", "b")]
    rows = [
        row | {"noise_ratio": None, "checkpoint": f"{name}.safetensors"}
        for name in names
        for row in convergence_rows(epochs=[4])[: len(LAYERS)]
    ]
    assert legend_labels(draw("convergence", rows)) == ["results/a", "results/b"]


def test_a_ratio_that_differs_in_its_last_digit_is_the_same():
    rows = [
        row | {"noise_ratio": 0.1 + 0.2, "reference_noise_ratio": 0.1 + 0.2}
        for row in convergence_rows(epochs=[1])[:3]
    ]
    rows += [row | {"noise_ratio": 0.3, "reference_noise_ratio": 0.3, "epoch": 2} for row in rows]
    assert legend_labels(draw("convergence", rows, as_options(x="epoch"))) == ["30"]
