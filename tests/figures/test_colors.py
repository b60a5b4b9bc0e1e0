"""Colours of noise ratios: equal in every figure, in order, told apart by the colour-blind."""

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from memtool.figures import draw
from memtool.figures.colors import epoch_colors, noise_style

from .examples import RATIOS, convergence_rows, curves, training_rows

PAPER = (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.375, 0.5, 0.675)
# How colours look without one kind of cones: Machado et al. (2009), in linear RGB.
EYES = {
    "all": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = [0.9505, 1, 1.089]


def lab(colors, eyes="all"):
    """CIE L*a*b* of colours in sRGB, as these eyes see them."""
    rgb = np.array([to_rgb(color) for color in colors])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(EYES[eyes]), 0, 1)
    xyz = seen @ TO_XYZ.T / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize("eyes", EYES)
def test_the_ratios_of_the_paper_are_told_apart_by_all_eyes(eyes):
    colors = lab([noise_style(ratio)["color"] for ratio in PAPER], eyes)
    steps = np.linalg.norm(np.diff(colors, axis=0), axis=1)
    assert steps.min() > 7  # 2 can just be seen side by side
    assert steps[:2].min() > 11  # 0, 5 and 10 %


def test_shades_grow_lighter_with_the_ratio_and_never_too_light_for_paper():
    light = lab([noise_style(ratio)["color"] for ratio in np.linspace(0, 1, 41)])[:, 0]
    assert (np.diff(light) > 0).all() and light[0] == 0 and light[-1] < 90
    epochs = lab(epoch_colors(12))[:, 0]
    assert (np.diff(epochs) < 0).all() and epochs[0] < 90


def test_each_ratio_of_the_paper_has_its_own_marker():
    assert len({noise_style(ratio)["marker"] for ratio in PAPER}) == len(PAPER)


def test_ratios_close_by_have_other_markers():
    for step in (0.01, 0.025, 0.05, 0.1):
        ratios = np.arange(0, 0.8, step)
        markers = [noise_style(ratio)["marker"] for ratio in ratios]
        assert all(a != b for a, b in zip(markers, markers[1:], strict=False))


def test_a_ratio_looks_the_same_whatever_else_the_table_holds():
    whole = curves(draw("training", training_rows()).axes[0])
    alone = curves(draw("training", training_rows(ratios=[0.25])).axes[0])
    other = curves(draw("convergence", convergence_rows()).axes[0])
    for lines in (whole, alone, other):
        line = lines["25"]
        assert to_hex(line.get_color()) == to_hex(noise_style(0.25)["color"])
        assert line.get_marker() == noise_style(0.25)["marker"]
    assert len({line.get_color() for line in whole.values()}) == len(RATIOS)
