"""Figure 2: accuracy of stitched models, as it is and net of the control."""

import numpy as np
import pytest

from memtool import MemtoolError
from memtool.figures import Options, as_options, draw

from .examples import (
    LAYERS,
    STITCHED_RATIOS,
    alone,
    bands,
    curves,
    legend_labels,
    stitch_rows,
    stitched,
    titles,
    with_control,
)

CUTS = {"conv1": "k = 1 (conv1)", "block2": "k = 2 (block2)", "fc": "k = 3 (fc)"}


@pytest.mark.parametrize(
    ("directions", "expected"),
    [
        (["reverse", "forward"], ["noisy front, clean back", "clean front, noisy back"]),
        (["control"], ["noisy front, own back (control)"]),
    ],
    ids=["both", "control"],
)
def test_stitching_has_panels_for_the_directions_present(directions, expected):
    assert titles(draw("stitching", stitch_rows(directions))) == expected


def test_stitching_draws_a_curve_per_cut_between_clean_and_noisy():
    figure = draw("stitching", stitch_rows())
    assert legend_labels(figure) == [*CUTS.values(), "clean model", "noisy model"]
    assert (figure.get_supxlabel(), figure.get_supylabel()) == (
        "noise ratio r (%)",
        "test accuracy",
    )
    for direction, axes in zip(["forward", "reverse", "control"], figure.axes, strict=True):
        lines = curves(axes)
        clean, noisy = lines["clean model"], lines["noisy model"]
        assert (clean.get_color(), clean.get_linestyle()) == ("black", ":")
        np.testing.assert_allclose(clean.get_ydata(orig=False), alone(0))
        assert noisy.get_linestyle() == "--"
        np.testing.assert_allclose(noisy.get_xdata(orig=False), [10, 25, 67.5])
        np.testing.assert_allclose(noisy.get_ydata(orig=False), [alone(r) for r in STITCHED_RATIOS])
        for cut in LAYERS:
            expected = [stitched(direction, cut, ratio, 0) for ratio in STITCHED_RATIOS]
            np.testing.assert_allclose(lines[CUTS[cut]].get_xdata(orig=False), [10, 25, 67.5])
            np.testing.assert_allclose(lines[CUTS[cut]].get_ydata(orig=False), expected)
    assert len({lines[CUTS[cut]].get_marker() for cut in LAYERS}) == len(LAYERS)


def test_stitching_seeds_become_their_mean_with_error_bars():
    figure = draw("stitching", stitch_rows(["forward"], seeds=(0, 1)))
    (axes,) = figure.axes
    expected = [stitched("forward", "fc", ratio, 0.5) for ratio in STITCHED_RATIOS]
    np.testing.assert_allclose(curves(axes)[CUTS["fc"]].get_ydata(orig=False), expected)
    bars = axes.containers[-1].lines[2][0].get_segments()
    spread = np.std([0, 0.01], ddof=1)
    for mean, bar in zip(expected, bars, strict=True):
        np.testing.assert_allclose(sorted(bar[:, 1]), [mean - spread, mean + spread])


def test_clean_networks_count_once_each():
    rows = stitch_rows(["forward"], seeds=(0, 1))
    rows = [row | {"back_accuracy": 0.9 if row["back"].startswith("s0") else 0.8} for row in rows]
    figure = draw("stitching", rows + rows[:2])  # the first network has more rows
    np.testing.assert_allclose(curves(figure.axes[0])["clean model"].get_ydata(orig=False), 0.85)


def test_without_a_clean_network_there_is_no_line_for_it():
    figure = draw("stitching", stitch_rows(["control"]))
    assert "clean model" not in legend_labels(figure)


def test_a_cut_between_layers_of_different_names_shows_both():
    rows = [row | {"back_layer": "net." + row["back_layer"]} for row in stitch_rows(["forward"])]
    assert legend_labels(draw("stitching", rows))[0] == "k = 1 (conv1 → net.conv1)"


def test_backs_of_several_noise_ratios_are_curves_of_their_own():
    rows = stitch_rows(["forward"])
    others = [
        row
        | {"back": "s0/r0.1", "back_noise_ratio": 0.1, "test_accuracy": row["test_accuracy"] / 2}
        for row in rows
    ]
    with pytest.raises(
        MemtoolError, match=r"r0\.0\.safetensors and x\.safetensors would become one"
    ):
        draw("stitching", rows + [row | {"back": "x.safetensors"} for row in rows])
    figure = draw("stitching", rows + others)
    assert titles(figure) == ["front of r, other back"]
    lines = curves(figure.axes[0])
    for end, factor in (("0 %", 1), ("10 %", 0.5)):
        expected = [factor * stitched("forward", "fc", ratio, 0) for ratio in STITCHED_RATIOS]
        found = lines[f"{CUTS['fc']}, other end {end}"].get_ydata(orig=False)
        np.testing.assert_allclose(found, expected)


def test_a_network_that_another_table_names_by_another_path_is_one():
    rows = [
        row | {"front_seed": row["seed"], "back_seed": row["seed"]}
        for row in with_control(stitch_rows(seeds=(0, 1)))
    ]
    moved = [
        row | {end: f"/moved/{row[end]}" for end in ("front", "back")}
        if 0.25 in (row["front_noise_ratio"], row["back_noise_ratio"])
        else row
        for row in rows
    ]
    assert draw("stitching", moved).points == draw("stitching", rows).points


def test_fronts_of_several_epochs_are_not_averaged():
    rows = stitch_rows(["forward"])
    earlier = [row | {"front": "epoch-1", "front_epoch": 1} for row in rows]
    with pytest.raises(MemtoolError, match="epoch-1 would become one point"):
        draw("stitching", rows + earlier)


def test_seeds_of_the_networks_count_as_seeds():
    rows = [
        row | {"seed": 0, "front_seed": seed, "back_seed": seed}
        for seed in (0, 1)
        for row in stitch_rows(["forward"], seeds=(seed,))
    ]
    line = curves(draw("stitching", rows).axes[0])[CUTS["fc"]]
    expected = [stitched("forward", "fc", ratio, 0.5) for ratio in STITCHED_RATIOS]
    np.testing.assert_allclose(line.get_ydata(orig=False), expected)


def test_stitching_net_of_control_takes_it_off_row_by_row():
    rows = with_control(stitch_rows(seeds=(0, 1)))
    figure = draw("stitching", rows, Options(net_of_control=True))
    assert titles(figure) == ["noisy front, clean back", "clean front, noisy back"]
    assert figure.get_supylabel() == "test accuracy − control's"
    assert legend_labels(figure) == [*CUTS.values(), "as the control", "mean ± SD, n = 2"]
    for direction, axes in zip(["forward", "reverse"], figure.axes, strict=True):
        lines = curves(axes)
        np.testing.assert_allclose(lines["as the control"].get_ydata(orig=False), 0)
        for cut in LAYERS:
            expected = [
                stitched(direction, cut, ratio, 0) - stitched("control", cut, ratio, 0) - 0.05
                for ratio in STITCHED_RATIOS
            ]
            np.testing.assert_allclose(lines[CUTS[cut]].get_ydata(orig=False), expected, atol=1e-12)


@pytest.mark.parametrize(
    "rows",
    [stitch_rows(["forward"]), with_control(stitch_rows(["control"]))],
    ids=["no control", "nothing else"],
)
def test_net_of_control_needs_a_control_and_a_direction(rows):
    with pytest.raises(MemtoolError, match="stitch with --control"):
        draw("stitching", rows, Options(net_of_control=True))


def test_of_a_curve_over_epochs_the_last_is_drawn():
    last = [row | {"epoch": 5} for row in stitch_rows(["forward"])]
    earlier = [row | {"epoch": 2, "test_accuracy": 0.1} for row in last]
    lines = curves(draw("stitching", earlier + last).axes[0])
    expected = [stitched("forward", "fc", ratio, 0) for ratio in STITCHED_RATIOS]
    np.testing.assert_allclose(lines[CUTS["fc"]].get_ydata(orig=False), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"direction": "sideways"}, "sideways"), ({"front_noise_ratio": None}, "ratio is unknown")],
    ids=["direction", "noise ratio"],
)
def test_stitching_refuses_what_it_cannot_place(changes, message):
    rows = stitch_rows(["forward"])
    with pytest.raises(MemtoolError, match=message):
        draw("stitching", [rows[0] | changes, *rows[1:]])


def test_an_unknown_direction_has_no_difference_to_the_control():
    rows = [row | {"direction": "sideways"} for row in with_control(stitch_rows(["forward"]))]
    with pytest.raises(MemtoolError, match="no direction 'sideways'"):
        draw("stitching", rows, Options(net_of_control=True))


def levels(axes):
    """The heights of the level lines of a panel, in order."""
    return [line.get_ydata()[0] for line in axes.lines if list(line.get_xdata()) == [0, 1]]


@pytest.mark.parametrize("ratios", [[0.25], [0.675, 0.25]], ids=["one ratio", "two"])
def test_of_one_or_two_ratios_the_cut_is_on_the_x_axis(ratios):
    figure = draw("stitching", stitch_rows(ratios=ratios))
    assert titles(figure) == [f"r = {100 * ratio:g} %" for ratio in sorted(ratios)]
    directions = {
        "forward": "noisy front, clean back",
        "reverse": "clean front, noisy back",
        "control": "noisy front, own back (control)",
    }
    assert legend_labels(figure) == [*directions.values(), "clean model", "noisy model"]
    for ratio, axes in zip(sorted(ratios), figure.axes, strict=True):
        lines = curves(axes)
        for direction, label in directions.items():
            expected = [stitched(direction, cut, ratio, 0) for cut in LAYERS]
            np.testing.assert_allclose(lines[label].get_ydata(orig=False), expected)
            assert list(lines[label].get_xdata(orig=False)) == [0, 1, 2]
        assert sorted(levels(axes)) == pytest.approx([alone(ratio), alone(0)])
        shown = [label.get_text() for label in axes.get_xticklabels()]
        assert shown == ["1\nconv1", "2\nblock2", "3\nfc"]


def test_the_cut_is_on_the_x_axis_net_of_the_control_too():
    figure = draw(
        "stitching", with_control(stitch_rows(ratios=[0.25])), Options(net_of_control=True)
    )
    (axes,) = figure.axes
    assert legend_labels(figure) == [
        *("noisy front, clean back", "clean front, noisy back", "as the control")
    ]
    expected = [
        stitched("reverse", cut, 0.25, 0) - stitched("control", cut, 0.25, 0) for cut in LAYERS
    ]
    found = curves(axes)["clean front, noisy back"].get_ydata(orig=False)
    np.testing.assert_allclose(found, expected)
    assert levels(axes) == [0]


def test_one_cut_of_several_ratios_is_a_curve_over_them():
    rows = [
        row for row in stitch_rows(["forward"], ratios=[0.25, 0.675]) if row["front_layer"] == "fc"
    ]
    assert list(curves(draw("stitching", rows).axes[0])["k = 1 (fc)"].get_xdata()) == [25, 67.5]


def test_long_names_of_cuts_stand_upright():
    names = {layer: f"features.denseblock.{layer}" for layer in LAYERS}
    rows = [
        row | dict.fromkeys(("front_layer", "back_layer"), names[row["front_layer"]])
        for row in stitch_rows(ratios=[0.25])
    ]
    label = draw("stitching", rows).axes[0].get_xticklabels()[1]
    assert (label.get_text(), label.get_rotation()) == ("2: features.denseblock.block2", 90)


def test_other_backs_are_lines_of_their_own_where_the_cut_is_on_the_x_axis():
    rows = stitch_rows(["forward"], ratios=[0.25])
    others = [
        row
        | {"back": "s0/r0.1", "back_noise_ratio": 0.1, "test_accuracy": row["test_accuracy"] / 2}
        for row in rows
    ]
    lines = curves(draw("stitching", rows + others).axes[0])
    expected = [stitched("forward", cut, 0.25, 0) / 2 for cut in LAYERS]
    found = lines["front of r, other back, other end 10 %"].get_ydata(orig=False)
    np.testing.assert_allclose(found, expected)


def test_the_number_of_a_cut_is_that_among_all_cuts():
    figure = draw("stitching", stitch_rows(), Options(layers=("block2", "fc")))
    assert legend_labels(figure)[:2] == ["k = 2 (block2)", "k = 3 (fc)"]
    figure = draw("stitching", stitch_rows(ratios=[0.25]), Options(layers=("fc",)))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["3\nfc"]


def seeds_that_differ(ratios):
    """Rows of two seeds, whose networks differ in accuracy by .02."""
    return [
        row | {end: row[end] + 0.02 * row["seed"] for end in ("front_accuracy", "back_accuracy")}
        for row in stitch_rows(seeds=(0, 1), ratios=ratios)
    ]


def test_networks_alone_have_their_deviation_as_a_band():
    spread = np.std([0, 0.02], ddof=1)
    axes = draw("stitching", seeds_that_differ(STITCHED_RATIOS)).axes[1]
    (band,) = bands(axes)
    edges = band.get_paths()[0].vertices
    for ratio in STITCHED_RATIOS:
        found = sorted({round(y, 9) for x, y in edges if x == 100 * ratio})
        mean = alone(ratio) + 0.01
        assert found == pytest.approx([mean - spread, mean + spread])
    axes = draw("stitching", seeds_that_differ([0.25])).axes[0]
    found = sorted((patch.get_y(), patch.get_height()) for patch in axes.patches)
    means = alone(0.25) + 0.01, alone(0) + 0.01
    assert found == [pytest.approx((mean - spread, 2 * spread)) for mean in means]


def test_two_clean_networks_of_one_seed_are_an_error_that_names_both():
    rows = stitch_rows(["reverse"], ratios=[0.25, 0.675])
    rows = [row | ({"front": "other"} if row["back_noise_ratio"] == 0.25 else {}) for row in rows]
    with pytest.raises(MemtoolError, match=r"other and s0/r0\.0\.safetensors would become one"):
        draw("stitching", rows)


def recorded(rows, **options):
    """The points of a figure: their values by curve and place, of the first panel."""
    figure = draw("stitching", rows, Options(**options))
    first = figure.points[0]["panel"]
    return {(p["curve"], p["x"]): p["value"] for p in figure.points if p["panel"] == first}


def test_the_numbers_behind_the_lines_are_on_record():
    found = recorded(stitch_rows())
    assert found[CUTS["fc"], "25"] == stitched("forward", "fc", 0.25, 0)
    assert (found["noisy model", "25"], found["clean model", "0"]) == (alone(0.25), alone(0))
    found = recorded(stitch_rows(ratios=[0.25]))
    assert found["clean front, noisy back", "fc"] == stitched("reverse", "fc", 0.25, 0)
    levels = {curve: value for (curve, x), value in found.items() if x == "block2"}
    assert (levels["noisy model"], levels["clean model"]) == (alone(0.25), alone(0))
    net = draw("stitching", with_control(stitch_rows()), Options(net_of_control=True))
    assert {p["measure"] for p in net.points} == {"test_accuracy - control_accuracy"}


def test_cuts_are_numbered_in_order_of_execution_whatever_the_first_row_lacks():
    rows = [
        row
        for row in stitch_rows()
        if (row["front_layer"], row["front_noise_ratio"]) != ("block2", 0.1)
    ]
    assert legend_labels(draw("stitching", rows))[:3] == list(CUTS.values())


def test_a_table_need_not_say_how_many_epochs_stitching_took():
    rows = [{name: cell for name, cell in row.items() if name != "epochs"} for row in stitch_rows()]
    rows = [row | {"epoch": 5} for row in rows]
    assert legend_labels(draw("stitching", rows)) == legend_labels(draw("stitching", stitch_rows()))


def test_a_cut_without_a_control_is_told(caplog):
    rows = [
        row | {"control_accuracy": None}
        if row["front_layer"] == "block2" or row["direction"] == "control"
        else row
        for row in with_control(stitch_rows())
    ]
    with caplog.at_level("INFO", "memtool"):
        draw("stitching", rows, as_options(net_of_control=True))
    assert caplog.messages == ["stitching: block2 left out where there is no control"]


def test_a_ratio_that_programs_write_in_two_ways_is_one():
    rows = stitch_rows(["forward"], seeds=(0, 1), ratios=[0.3, 0.5, 0.675])
    for row in rows:
        if row["seed"] and row["front_noise_ratio"] == 0.3:
            row["front_noise_ratio"] = 0.1 * 3
    line = curves(draw("stitching", rows).axes[0])[CUTS["fc"]]
    assert list(line.get_xdata(orig=False)) == [30, 50, 67.5]
