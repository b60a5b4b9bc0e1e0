"""Colours and markers that mean the same in every figure.

A noise ratio has its colour whatever else the table holds. From black for none they grow lighter
with the ratio, through blue, violet and orange, so that they are in order in grey, too, and told
apart by the colour-blind; the paper's ratios are evenly spaced among them.
"""

from functools import cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap

Style = dict[str, Any]  # keyword arguments of Axes.plot
Color = tuple[float, ...]

RATIOS = (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.375, 0.5, 0.675, 1)
SHADES = (
    *("#000000", "#2b2f9e", "#5a3fd6", "#8f4bd8", "#bd48b5"),
    *("#dc4f83", "#ec6a55", "#f2923b", "#f2c037", "#f5d95a"),
)
MARKERS = "os^Dv*Xp<>h"
EPOCHS = "viridis_r"
LIGHTEST, DARKEST = 0.12, 1.0  # of that map: what lies before is too light for white paper


def noise_style(ratio: float) -> Style:
    """The colour and the marker of a noise ratio in [0, 1]."""
    place = float(np.interp(ratio, RATIOS, np.linspace(0, 1, len(RATIOS))))
    # Of these steps the paper's ratios have a marker each, and ratios of a few percent more or less
    # have other ones.
    return {"color": _shades()(place), "marker": MARKERS[round(157 * ratio) % len(MARKERS)]}


def epoch_colors(number: int) -> list[Color]:
    """Colours for so many epochs in order, from light to dark."""
    places = np.linspace(LIGHTEST, DARKEST, number) if number > 1 else [DARKEST]
    return [tuple(shade) for shade in matplotlib.colormaps[EPOCHS](places)]


@cache
def _shades() -> Colormap:
    return LinearSegmentedColormap.from_list("noise", SHADES)
