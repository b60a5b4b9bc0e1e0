"""Heatmaps of layers by reference layers."""

import itertools

import numpy as np
import pytest

from memtool import MemtoolError
from memtool.figures import draw
from memtool.figures.options import Options

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


@pytest.mark.parametrize("missing", range(9))
def test_layers_are_in_order_of_execution_whatever_row_is_missing(missing):
    rows = pair_rows()
    del rows[missing]
    other = [row | {"cka": None} for row in pair_rows("r25.safetensors")]  # a panel without values
    axes = draw("heatmap", rows + other).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == LAYERS
    assert [label.get_text() for label in axes.get_yticklabels()] == LAYERS
    (image,) = axes.images
    masked = np.ma.getmaskarray(image.get_array()).ravel().tolist()
    assert masked == [place == missing for place in range(9)]


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


def test_long_names_leave_room_for_cells_in_a_narrow_figure():
    rows = [{**row, "layer": row["layer"] + 40 * "x"} for row in pair_rows()]
    matrix, _ = draw("heatmap", rows, Options(width=1.5)).axes
    assert [tick.get_text() for tick in matrix.get_yticklabels()] == [
        f"{x}{40 * 'x'}" for x in LAYERS
    ]


def test_heatmap_refuses_to_average():
    with pytest.raises(MemtoolError, match=r"r50\.safetensors: .* more than once"):
        draw("heatmap", pair_rows() + pair_rows()[:1])


def corresponding_rows():
    return [row for row in pair_rows() if row["layer"] == row["reference_layer"]]


def test_heatmap_refuses_a_table_of_corresponding_layers():
    with pytest.raises(MemtoolError, match=r"r50\.safetensors: its layers .* --pairs all, or"):
        draw("heatmap", corresponding_rows())
    others = [row | {"checkpoint": "r25.safetensors"} for row in corresponding_rows()]
    with pytest.raises(MemtoolError, match=r"r25\.safetensors: its layers"):
        draw("heatmap", pair_rows() + others)
    assert draw("heatmap", pair_rows(), Options(layers=("fc",)))  # one pair of many


STEM, HEAD = ["conv1", "bn1", "relu"], ["avgpool", "fc"]
BLOCK = ["conv1", "bn1", "relu", "conv2", "bn2", "relu_1"]


def resnet_layers(blocks=3):
    """The layers of a ResNet: four stages, each of them with blocks and itself at its end."""
    stages = [
        [*(f"layer{s}.{b}.{part}" for b in range(blocks) for part in BLOCK), f"layer{s}"]
        for s in range(1, 5)
    ]
    return STEM + [name for stage in stages for name in stage] + HEAD


def ticks(axis):
    names = [label.get_text() for label in axis.get_ticklabels()]
    return dict(zip(names, axis.get_ticklocs(), strict=True))


def test_of_many_layers_the_ends_of_stages_are_named():
    layers = resnet_layers()
    axes = draw("heatmap", pair_rows(layers=layers)).axes[0]
    named = ["relu", "layer1", "layer2", "layer3", "layer4", "fc"]
    expected = {name: layers.index(name) for name in named}
    assert ticks(axes.xaxis) == ticks(axes.yaxis) == expected
    every = draw("heatmap", pair_rows(layers=layers), Options(layers=("all",))).axes[0]
    assert list(ticks(every.yaxis)) == layers == list(ticks(every.xaxis))
    narrow = draw("heatmap", pair_rows(layers=layers), Options(layers=("all",), width=3.3))
    assert narrow.get_figwidth() <= 3.3 and len(ticks(narrow.axes[0].yaxis)) < len(layers)
    few = draw("heatmap", pair_rows(layers=resnet_layers(blocks=1))).axes[0]
    assert list(ticks(few.xaxis)) == resnet_layers(blocks=1)


def test_of_names_too_close_to_each_other_that_of_the_stage_is_shown():
    rows = pair_rows(layers=resnet_layers())
    axes = draw("heatmap", rows, Options(width=2.2)).axes[0]
    assert list(ticks(axes.yaxis)) == ["relu", "layer1", "layer2", "layer3", "layer4"]


def test_lines_are_drawn_after_each_stage_and_corresponding_layers_framed():
    layers = resnet_layers()
    axes = draw("heatmap", pair_rows(layers=layers)).axes[0]
    ends = [layers.index(f"layer{stage}") + 0.5 for stage in range(1, 5)]
    horizontal = [y for x, y in map(ends_of, axes.lines) if x == [0, 1]]
    vertical = [x for x, y in map(ends_of, axes.lines) if y == [0, 1]]
    assert horizontal == vertical == [[end, end] for end in ends]
    assert framed(axes) == [(i, i) for i in range(len(layers))]


def test_lines_are_drawn_after_the_layers_that_are_marked():
    axes = draw("heatmap", pair_rows(), Options(marks=("conv?",))).axes[0]
    assert [x for x, y in map(ends_of, axes.lines) if y == [0, 1]] == [[0.5, 0.5]]


def ends_of(line):
    return list(line.get_xdata()), list(line.get_ydata())


def framed(axes):
    """The cells, (x, y), that have a frame."""
    (frames,) = axes.collections
    return [tuple(path.vertices[:4].mean(0)) for path in frames.get_paths()]


def test_layers_of_a_stitched_model_correspond_by_their_names_in_its_parts():
    names = {"conv1": "front.conv1", "block2": "front.block2", "fc": "back.block2"}
    assert framed(draw("heatmap", stitched_rows(names)).axes[0]) == [(0, 0), (1, 1), (1, 2)]


def stitched_rows(names):
    """The rows of a stitched model whose layers have these names."""
    rows = [row | {"layer": names[row["layer"]]} for row in pair_rows()]
    return [row | {"model": "stitched(net, net, block2=block2)"} for row in rows]


def test_parts_that_a_network_has_itself_correspond_as_they_are_called():
    own = {"conv1": "front.a", "block2": "back.a", "fc": "back"}
    plain = [row | {"reference_layer": own[row["reference_layer"]]} for row in pair_rows()]
    assert framed(draw("heatmap", plain).axes[0]) == []
    both = [row | {"layer": own[row["layer"]]} for row in plain]
    assert framed(draw("heatmap", both).axes[0]) == [(0, 0), (1, 1), (2, 2)]
    parts = stitched_rows({"conv1": "front.front.a", "block2": "back.back.a", "fc": "back"})
    parts = [row | {"reference_layer": own[row["reference_layer"]]} for row in parts]
    assert framed(draw("heatmap", parts).axes[0]) == [(0, 0), (1, 1)]


def test_long_names_of_files_are_whole_and_within_the_figure():
    long = "experiments/cifar10-resnet18/r50-seed0/epoch-0004.safetensors"
    figure = draw("heatmap", pair_rows(long, [f"layer{i}" for i in range(60)]))
    (axes, _) = figure.axes
    assert axes.get_ylabel().replace("\n", "") == f"layer of {long.removesuffix('.safetensors')}"
    figure.draw_without_rendering()
    box, page = axes.yaxis.label.get_window_extent(), figure.bbox
    assert page.y0 <= box.y0 and box.y1 <= page.y1 and page.x0 <= box.x0


def test_names_have_room_on_the_shorter_side_too():
    tall = [
        row
        for row in pair_rows(layers=[f"layer{i}" for i in range(60)])
        if int(row["layer"][5:]) < 7
    ]
    figure = draw("heatmap", tall)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 7 and not any(overlap(a, b) for a, b in itertools.pairwise(boxes))
