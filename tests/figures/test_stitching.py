"""Figure 2: accuracy of stitched models, as it is and net of the control."""

import numpy as np
import pytest

from memtool import MemtoolError
from memtool.figures import Options, draw

from .examples import (
    LAYERS,
    RATIOS,
    alone,
    curves,
    legend_labels,
    stitch_rows,
    stitched,
    titles,
    with_control,
)


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
    assert legend_labels(figure) == [*LAYERS, "clean model", "noisy model"]
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
        np.testing.assert_allclose(noisy.get_xdata(orig=False), [25, 67.5])
        np.testing.assert_allclose(noisy.get_ydata(orig=False), [alone(r) for r in RATIOS[1:]])
        for cut in LAYERS:
            expected = [stitched(direction, cut, ratio, 0) for ratio in RATIOS[1:]]
            np.testing.assert_allclose(lines[cut].get_xdata(orig=False), [25, 67.5])
            np.testing.assert_allclose(lines[cut].get_ydata(orig=False), expected)
    assert len({lines[cut].get_marker() for cut in LAYERS}) == len(LAYERS)


def test_stitching_seeds_become_their_mean_with_error_bars():
    figure = draw("stitching", stitch_rows(["forward"], seeds=(0, 1)))
    (axes,) = figure.axes
    expected = [stitched("forward", "fc", ratio, 0.5) for ratio in RATIOS[1:]]
    np.testing.assert_allclose(curves(axes)["fc"].get_ydata(orig=False), expected)
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
    assert legend_labels(draw("stitching", rows))[0] == "conv1 → net.conv1"


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
        expected = [factor * stitched("forward", "fc", ratio, 0) for ratio in RATIOS[1:]]
        found = lines[f"fc, other end {end}"].get_ydata(orig=False)
        np.testing.assert_allclose(found, expected)


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
    line = curves(draw("stitching", rows).axes[0])["fc"]
    expected = [stitched("forward", "fc", ratio, 0.5) for ratio in RATIOS[1:]]
    np.testing.assert_allclose(line.get_ydata(orig=False), expected)


def test_stitching_net_of_control_takes_it_off_row_by_row():
    rows = with_control(stitch_rows(seeds=(0, 1)))
    figure = draw("stitching", rows, Options(net_of_control=True))
    assert titles(figure) == ["noisy front, clean back", "clean front, noisy back"]
    assert figure.get_supylabel() == "test accuracy − control's"
    assert legend_labels(figure) == [*LAYERS, "as the control"]
    for direction, axes in zip(["forward", "reverse"], figure.axes, strict=True):
        lines = curves(axes)
        np.testing.assert_allclose(lines["as the control"].get_ydata(orig=False), 0)
        for cut in LAYERS:
            expected = [
                stitched(direction, cut, ratio, 0) - stitched("control", cut, ratio, 0) - 0.05
                for ratio in RATIOS[1:]
            ]
            np.testing.assert_allclose(lines[cut].get_ydata(orig=False), expected, atol=1e-12)


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
    expected = [stitched("forward", "fc", ratio, 0) for ratio in RATIOS[1:]]
    np.testing.assert_allclose(lines["fc"].get_ydata(orig=False), expected)


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
