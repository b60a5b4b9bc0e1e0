"""Figures 1 and 3 with layers on the x axis: a panel per noise ratio and a curve per epoch."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from memtool import MemtoolError
from memtool.figures import as_options, draw
from memtool.figures import points as figure_points
from memtool.figures.by_layer import doubling
from memtool.figures.layer_axis import LayerAxis, is_side, one_per_tensor

from .examples import (
    EPOCHS,
    LAYERS,
    RATIOS,
    cka_row,
    convergence_rows,
    curves,
    divergence_rows,
    legend_labels,
    overlap,
    similarity,
    titles,
)

BLOCK = ["conv1", "bn1", "relu", "conv2", "bn2", "relu_1", ""]


def resnet_layers(stages=4, blocks=2):
    """The names of a ResNet's layers, and the layer of the very same tensor."""
    yield "conv1", None
    for stage, block in itertools.product(range(1, stages + 1), range(blocks)):
        whole = f"layer{stage}" if block == blocks - 1 else f"layer{stage}.{block}"
        for part in BLOCK:
            if part == "relu_1" and block == 0 and stage > 1:
                yield f"layer{stage}.0.downsample", None
            name = f"layer{stage}.{block}.{part}".rstrip(".")
            yield name, whole if part in ("relu_1", "") and name != whole else None
        if block == blocks - 1:
            yield f"layer{stage}", None
    yield "fc", None


def resnet_rows(epochs=range(1, 21), ratios=(0, 0.25, 0.5), seeds=(0,)):
    layers = list(resnet_layers())
    return [
        cka_row("fc", ratio, epoch, seed)
        | {"layer": name, "reference_layer": name, "same_as": same}
        | {"cka": 1 - ratio * epoch * place / 2000 + 0.01 * seed}
        for ratio in ratios
        for epoch in epochs
        for seed in seeds
        for place, (name, same) in enumerate(layers)
    ]


def by_layer(rows, kind="convergence", **options):
    return draw(kind, rows, as_options(x="layer", **options))


def test_a_panel_per_ratio_has_a_curve_per_epoch():
    figure = by_layer(divergence_rows(), "divergence")
    assert titles(figure) == ["r = 0 %", "r = 25 %", "r = 67.5 %"]
    assert legend_labels(figure) == ["1", "2", "3", "4"]
    assert figure.legends[0].get_title().get_text() == "epoch"
    assert figure.get_supylabel() == "CKA to final clean model"
    for ratio, axes in zip(RATIOS, figure.axes, strict=True):
        assert [label.get_text() for label in axes.get_xticklabels()] == LAYERS
        for epoch, line in zip(EPOCHS, curves(axes).values(), strict=True):
            assert list(line.get_xdata(orig=False)) == [0, 1, 2]
            expected = [similarity(layer, ratio, epoch, 0) for layer in LAYERS]
            np.testing.assert_allclose(line.get_ydata(orig=False), expected)


def test_the_x_axis_is_the_layers_where_they_are_many_and_as_one_says():
    few, many = convergence_rows(), resnet_rows(epochs=[1, 2])
    assert titles(draw("convergence", few)) == LAYERS
    assert titles(by_layer(few))[0] == "r = 0 %"
    assert titles(draw("convergence", many))[0] == "r = 0 %"
    chosen = as_options(x="epoch", layers="layer1.*")
    assert titles(draw("convergence", many, chosen))[:2] == ["layer1.0.conv1", "layer1.0.bn1"]


def test_epochs_that_double_are_drawn_from_light_to_dark():
    figure = by_layer(resnet_rows(ratios=[0.5]))
    lines = curves(figure.axes[0])
    assert list(lines) == ["1", "2", "4", "8", "16", "20"]
    brightness = [sum(to_rgb(line.get_color())) for line in lines.values()]
    assert brightness == sorted(brightness, reverse=True) and len(set(brightness)) == 6
    every = by_layer(resnet_rows(ratios=[0.5]), epochs="all")
    assert (
        len({line.get_color() for line in every.axes[0].lines if len(line.get_xdata()) > 9}) == 20
    )
    assert len(legend_labels(every)) <= 12 and legend_labels(every)[:1] == ["1"]
    assert "20" in legend_labels(every)
    assert legend_labels(by_layer(resnet_rows(ratios=[0.5]), epochs="3,last"))[:2] == ["3", "20"]


@pytest.mark.parametrize(
    ("epochs", "drawn"),
    [
        (range(9), [0, 1, 2, 4, 8]),
        (range(1, 9), range(1, 9)),
        (range(10, 101, 10), [10, 20, 40, 70, 100]),
        ([7], [7]),
    ],
)
def test_doubling(epochs, drawn):
    assert doubling(list(epochs)) == list(drawn)


def test_the_same_tensor_is_drawn_once_by_the_name_of_its_block():
    rows = resnet_rows(epochs=[1])
    names = one_per_tensor(rows)
    assert names[-3:] == ["layer4.1.bn2", "layer4", "fc"] and "layer4.0" in names
    assert not {"layer4.1", "layer4.1.relu_1", "layer3.0.relu_1"} & set(names)
    assert "layer3.0" in names
    rows = [row for row in rows if row["layer"] != "layer4"]  # what the others are the same as
    assert one_per_tensor(rows)[-2:] == ["layer4.1", "fc"]
    without = [row | {"same_as": None} for row in rows]  # as in tables that do not say
    assert len(one_per_tensor(without)) == len(list(resnet_layers())) - 1
    epochs = draw("convergence", resnet_rows(), as_options(x="epoch", layers="layer1.1*,layer1"))
    assert titles(epochs)[-1] == "layer1" and len(titles(epochs)) == 6


def test_shortcuts_are_dots_beside_the_curve():
    figure = by_layer(resnet_rows(epochs=[1, 2], seeds=(0, 1)))
    axis = LayerAxis.of(resnet_rows(epochs=[1]))
    side = [place for place, name in enumerate(axis.layers) if is_side(name)]
    assert len(side) == 3
    for axes in figure.axes:
        dots = [line for line in axes.lines if line.get_linestyle() == "None"]
        assert [list(line.get_xdata(orig=False)) for line in dots] == [side, side]
        assert not set(side) & set(curves(axes)["1"].get_xdata(orig=False))
    assert "shortcuts" in legend_labels(figure)
    assert "shortcuts" not in legend_labels(by_layer(convergence_rows()))


def vertical(axes):
    return [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]


def test_lines_and_names_are_those_of_stages():
    rows = resnet_rows([1, 2])
    figure, layers = by_layer(rows, width="page"), LayerAxis.of(rows).layers
    ends = [layers.index(f"layer{stage}") for stage in (1, 2, 3, 4)]
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert vertical(axes) == ends
        names = [label.get_text() for label in axes.get_xticklabels()]
        assert [name for name in names if name != "fc"] == [f"layer{i}" for i in (1, 2, 3, 4)]
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert not any(overlap(a, b) for a, b in itertools.pairwise(boxes))
    marked = by_layer(rows, marks="layer2.?.conv1,fc").axes[0]
    assert vertical(marked) == [layers.index(n) for n in ("layer2.0.conv1", "layer2.1.conv1", "fc")]


def test_many_layers_and_checkpoints_fit_a_page_and_a_column():
    rows = resnet_rows([1, 2, 4, 20], (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.375, 0.5, 0.675))
    for width in ("page", "column"):
        assert by_layer(rows, width=width).get_figheight() < 9.2


def test_one_epoch_has_one_panel_with_a_curve_per_ratio_marked_at_the_ends_of_stages():
    figure = by_layer(resnet_rows(), epochs="last")
    (axes,) = figure.axes
    lines = curves(axes)
    assert list(lines) == ["0", "25", "50"]
    ends = [LayerAxis.of(resnet_rows()).layers.index(f"layer{i}") for i in (1, 2, 3, 4)]
    for line in lines.values():
        x = line.get_xdata(orig=False)
        assert [x[i] for i in line.get_markevery()] == ends


def test_a_layer_without_a_value_at_first_keeps_its_place():
    rows = divergence_rows()
    rows = [
        row | {"cka": None} if (row["layer"], row["epoch"]) == ("block2", 1) else row
        for row in rows
    ]
    assert titles(draw("divergence", rows, as_options(x="epoch"))) == LAYERS
    axes = draw("divergence", rows, as_options(x="layer")).axes[-1]
    assert [label.get_text() for label in axes.get_xticklabels()] == LAYERS


def test_a_single_layer_is_seen():
    rows = [row | {"cka_null": 0.1} for row in divergence_rows()]
    second = [
        row | {"checkpoint": "again", "order_seed": 1} for row in rows if not row["noise_ratio"]
    ]
    figure = draw("divergence", rows + second, as_options(x="layer", layers="fc"))
    for axes in figure.axes:
        drawn = [line for line in axes.lines if len(line.get_xdata()) == 1]
        assert len(drawn) == len(EPOCHS) + 2
        assert all(line.get_marker() not in ("None", "") for line in drawn)


def test_each_run_has_its_last_epoch():
    rows = [
        row
        for row in convergence_rows(epochs=range(1, 21))
        if row["noise_ratio"] or row["epoch"] < 11
    ]
    figure = draw("convergence", rows, as_options(x="layer"))
    shown = {panel: set() for panel in ("r = 0 %", "r = 25 %")}
    for point in figure_points(figure):
        if point["panel"] in shown:
            shown[point["panel"]].add(int(point["curve"]))
    assert shown == {"r = 0 %": {1, 2, 4, 8, 10}, "r = 25 %": {1, 2, 4, 8, 16, 20}}


def test_marks_call_for_layers_along_the_axis():
    figure = draw("convergence", convergence_rows(), as_options(marks="block2"))
    assert figure.get_supxlabel() == "layer"
    with pytest.raises(MemtoolError, match="marks are lines between layers"):
        draw("convergence", convergence_rows(), as_options(marks="block2", x="epoch"))
    with pytest.raises(MemtoolError, match="no mark matches 'zzz'"):
        draw("convergence", convergence_rows(), as_options(marks="zzz"))


def test_names_of_marks_do_not_lie_over_each_other():
    names = [f"layer{i // 30}.{i % 30}" for i in range(75)]
    rows = [cka_row("fc", 0.5, 4, 0) | {"layer": name} for name in names]
    figure = draw("convergence", rows, as_options(marks="layer1.*", width="column"))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(boxes) > 3
    assert not any(overlap(a, b) for a, b in itertools.pairwise(boxes))
