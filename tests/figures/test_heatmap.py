"""Heatmaps of layers by reference layers."""

import itertools

import numpy as np
import pytest

from memtool import MemtoolError
from memtool.figures import draw

from .examples import LAYERS, overlap, pair_rows


def test_heatmap_is_the_matrix_of_layers_by_reference_layers():
    figure = draw("heatmap", pair_rows())
    axes, colorbar = figure.axes
    (image,) = axes.images
    expected = [[i / 10 + j / 100 for j in range(3)] for i in range(3)]
    np.testing.assert_allclose(image.get_array(), expected)
    assert image.get_clim() == (0, 1)
    assert [label.get_text() for label in axes.get_xticklabels()] == LAYERS
    assert [label.get_text() for label in axes.get_yticklabels()] == LAYERS
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("layer of r50", "layer of r0")
    assert colorbar.get_ylabel() == "CKA"
    assert sorted(text.get_text() for text in axes.texts)[-1] == "0.22"


def test_an_empty_cell_is_grey_and_bare():
    rows = pair_rows()
    rows[1]["cka"] = None
    figure = draw("heatmap", rows)
    (image,) = figure.axes[0].images
    assert np.ma.getmaskarray(image.get_array()).tolist() == [
        [False, True, False],
        *[[False] * 3] * 2,
    ]
    red, green, blue, _ = image.to_rgba(image.get_array())[0, 1]
    assert red == green == blue
    assert len(figure.axes[0].texts) == 8


def test_heatmap_has_a_panel_per_pair_of_checkpoints():
    names = ["r10", "r25", "r50"]
    rows = [row for name in names for row in pair_rows(f"{name}.safetensors")]
    figure = draw("heatmap", rows)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_ylabel() for axes in panels] == [f"layer of {name}" for name in names]


@pytest.mark.parametrize(("layers", "shown"), [(60, 60), (200, 67)])
def test_names_of_many_layers_keep_apart(layers, shown):
    figure = draw("heatmap", pair_rows(layers=[f"layer{i}.conv" for i in range(layers)]))
    axes = figure.axes[0]
    assert len(axes.texts) == 0
    labels = axes.get_yticklabels()
    assert len(labels) == shown
    assert min(label.get_fontsize() for label in labels) >= 5
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in labels]
    assert not any(overlap(a, b) for a, b in itertools.pairwise(boxes))


def test_heatmap_refuses_to_average():
    with pytest.raises(MemtoolError, match=r"r50\.safetensors: .* more than once"):
        draw("heatmap", pair_rows() + pair_rows()[:1])
