"""Panels, titles and the legend."""

import itertools

import matplotlib
import pytest

from memtool.figures import as_options, draw
from memtool.figures.style import (
    LOOK,
    PAGE_WIDTH,
    finish,
    panel_grid,
    short_names,
    styles_of,
    wrapped,
)

from .examples import (
    EPOCHS,
    cka_row,
    convergence_rows,
    each_kind,
    legend_labels,
    overlap,
    titles,
)


def test_many_long_layer_names_wrap_without_a_loss():
    names = [f"features.denseblock{i}.denselayer{i}.conv{i}" for i in range(24)]
    rows = [cka_row("fc", 0.5, epoch, 0) | {"layer": name} for name in names for epoch in EPOCHS]
    figure = draw("convergence", rows, as_options(x="epoch"))
    assert [title.replace("\n", "") for title in titles(figure)] == names
    assert figure.get_figwidth() == PAGE_WIDTH
    figure.draw_without_rendering()
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    assert not any(overlap(a, b) for a, b in itertools.pairwise(boxes))


def test_names_of_checkpoints_keep_their_end_and_fit_a_label():
    assert short_names(["a" * 30 + ".safetensors"]) == ["a" * 30]
    (name,) = short_names(["folder/" * 9 + "epoch-0004.safetensors"])
    assert name.endswith("/epoch-0004") and len(name) == 30


@pytest.mark.parametrize("names", [["runs/a"] * 2, ["runs/a", "runs/a.safetensors"]])
def test_names_that_do_not_differ_are_whole(names):
    assert short_names(names) == ["runs/a", "runs/a"]
    assert short_names([*names, "other/a"]) == ["runs", "runs", "other"]


def test_neighbouring_styles_differ_and_no_shade_is_too_light():
    styles = list(styles_of(range(12), [f"cut {i}" for i in range(12)], "viridis").values())
    for first, second in itertools.pairwise(styles):
        assert first["color"] != second["color"] and first["marker"] != second["marker"]
    assert max(sum(style["color"][:3]) for style in styles) < 2  # white is 3


@matplotlib.rc_context(LOOK)
def test_a_legend_too_wide_for_one_line_takes_several():
    labels = [f"a long label of run {i}" for i in range(12)]
    figure, _ = panel_grid(["panel"], columns=1)
    height = figure.get_figheight()
    finish(figure, "x", "y", list(styles_of(labels, labels, "plasma").values()), "runs")
    assert legend_labels(figure) == labels
    assert figure.get_figheight() > height
    figure.draw_without_rendering()
    legend, panel = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
    assert not overlap(legend, panel)
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1


@each_kind
def test_a_figure_is_as_wide_as_one_says_and_has_its_title_on_top(kind, rows):
    title = "A title of a figure that is so long that it takes several lines in a narrow column"
    width, options = 3.3, as_options(width="column", title=title)
    figure = draw(kind, rows, options)
    if kind != "heatmap":  # squares, which grow no wider than they need
        assert figure.get_figwidth() == pytest.approx(width)
    assert figure.get_figwidth() <= width + 0.01
    (text,) = figure.texts[:1] if figure.get_supxlabel() == "" else figure.texts[-1:]
    assert text.get_text().replace("\n", " ") == title
    with matplotlib.rc_context(LOOK):
        figure.draw_without_rendering()
        box = text.get_window_extent()
        parts = [*figure.legends, *(axes.title for axes in figure.axes), *figure.axes]
        boxes = [part.get_window_extent() for part in parts]
    assert not any(overlap(box, other) for other in boxes)
    legends = boxes[: len(figure.legends)]
    assert not any(overlap(a, b) for a in legends for b in boxes[len(legends) :])
    assert box.y1 <= figure.bbox.y1 and box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_a_style_sets_the_sizes_of_titles_and_labels(tmp_path):
    style = tmp_path / "big.mplstyle"
    style.write_text("axes.titlesize: 14\naxes.labelsize: 12\n")
    figure = draw("convergence", convergence_rows(), as_options(style=style, x="epoch"))
    assert {axes.title.get_fontsize() for axes in figure.axes} == {14}
    assert {figure._supxlabel.get_fontsize(), figure._supylabel.get_fontsize()} == {12}


def test_numbers_are_not_broken():
    for width in range(8, 40):
        lines = wrapped("front of r = 5 %, back of r = 67.5 %", width).splitlines()
        assert any("67.5 %" in line for line in lines) and max(map(len, lines)) <= width
