"""Figures drawn with letters."""

import pytest
from rich.cells import cell_len

from memtool.figures import Options, as_text, draw
from memtool.figures.terminal import MARKERS as LETTERS

from .examples import (
    LAYERS,
    TABLES,
    convergence_rows,
    each_kind,
    pair_rows,
    stitch_rows,
    supplement_rows,
    training_rows,
)

MARKERS = LETTERS.values()


def lines_of(kind, rows, width=80, **options):
    return as_text(draw(kind, rows, Options(**options)), width).splitlines()


@each_kind
@pytest.mark.parametrize("width", [1, 30, 80, 200])
def test_every_figure_fits_its_terminal_and_has_no_colours_unless_styled(kind, rows, width):
    text = as_text(draw(kind, rows), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text and text.endswith("\n") and not text.endswith("\n\n")


def test_a_curve_is_where_its_values_are():
    rows = [row for row in training_rows(ratios=[0.5]) if row["epoch"] < 4]
    rows = [row | {"loss": loss} for row, loss in zip(rows, (4.0, 2.0, 0.0), strict=True)]
    columns = ("given_accuracy", "true_accuracy", "mislabelled_accuracy", "test_accuracy")
    lines = lines_of("training", [row | dict.fromkeys(columns) for row in rows], width=60)
    assert lines[:2] == ["by epoch", "loss"]
    places = [
        (number, line.index(marker))
        for number, line in enumerate(lines[:-1])
        for marker in MARKERS
        if marker in line
    ]
    (top, left), (middle, center), (bottom, right) = places
    assert abs((middle - top) - (bottom - middle)) <= 1 and middle - top > 3
    assert abs((center - left) - (right - center)) <= 2 and center - left > 10
    assert lines[bottom].split("│")[0].strip() in ("0", "0.0")
    assert lines[-1].endswith(" 50")  # the legend


@each_kind
def test_the_legend_says_what_its_labels_are_of(kind, rows):
    figure = draw(kind, rows)
    titles = [legend.get_title().get_text() for legend in figure.legends]
    text = as_text(figure, 80)
    assert all(f"{title}:" in text for title in titles if title)
    assert any(titles) or kind not in ("convergence", "training")


def test_open_markers_and_names_of_layers():
    lines = lines_of("supplement", supplement_rows(ratios=[0.5], cuts=[1]), width=120)
    assert lines[0] == "CKA to clean model, by layer"
    assert "front of r = 50 %, clean back" in lines[1]
    drawn = "".join(lines[2:15])
    assert drawn.count("○") >= 3 and drawn.count("●") >= 6
    assert [*lines[16].split()] == LAYERS * 3
    assert any("○ before the cut" in line for line in lines)


def test_panels_stand_beside_each_other_where_there_is_room():
    narrow, wide = (lines_of("stitching", stitch_rows(), width=width) for width in (40, 160))
    assert len(narrow) > 2 * len(wide)
    assert "noisy front, clean back" in wide[1] and "own back (control)" in wide[1]
    assert any("┈┈ clean model" in line for line in wide)


def test_a_heatmap_has_a_line_per_layer_the_first_at_the_bottom():
    rows = pair_rows(layers=LAYERS)
    values = [1.0, 0.5, 0.1, 0.0, 0.7, None, 0.3, 0.2, 0.9]
    rows = [row | {"cka": value} for row, value in zip(rows, values, strict=True)]
    lines = lines_of("heatmap", rows)
    assert lines[:3] == ["    fc ░░░░░░░░████", "block2     ▓▓▓▓????", " conv1 ████▒▒▒▒"]
    assert "layer of r50, the first at the bottom" in lines[3]


def test_colours_are_those_of_the_figure(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    figure = draw("heatmap", pair_rows())
    styled = as_text(figure, 60, styled=True)
    assert "\x1b[48;2;0;0;4m    " in styled  # CKA 0
    curves = as_text(draw("stitching", stitch_rows()), 120, styled=True)
    assert "\x1b[38;2;0;180;216m" in curves  # the noisy networks alone
    monkeypatch.setenv("NO_COLOR", "1")
    assert "48;2" not in as_text(figure, 60, styled=True)
    assert as_text(figure, 60, styled=True) == as_text(figure, 60)


def test_a_title_is_shown():
    lines = lines_of("convergence", convergence_rows(), title="All [bold]runs[/]")
    assert lines[0] == "All [bold]runs[/]"
    assert len(TABLES) > 5


def test_what_a_heatmap_has_no_room_for_is_told():
    rows = pair_rows(layers=[f"layer{i}" for i in range(75)])
    lines = lines_of("heatmap", rows, width=80)
    assert "columns: layer of r0, the first 70 of 75" in lines
    names = pair_rows(layers=[f"a.very.long.name.of.a.layer{i}" for i in range(3)])
    lines = lines_of("heatmap", names, width=40)
    assert "░" in lines[0]  # .2 and more
    assert "the first at the bottom" in " ".join(lines) and "the first at the left" in " ".join(
        lines
    )


def test_a_long_name_of_a_file_is_as_it_was():
    name = "experiments/of a long name/resnet18/r50/epoch-0004.safetensors"
    lines = lines_of("heatmap", pair_rows(name), width=160)
    assert f"lines: layer of {name.removesuffix('.safetensors')}, the first at the bottom" in lines


def test_wide_letters_take_two_cells():
    lines = lines_of("heatmap", pair_rows(layers=["⚡⚡a", "bcdef"]), width=40)
    assert cell_len(lines[0]) == cell_len(lines[1])


def test_titles_are_whole():
    title = "Many words, of which none may be lost, however narrow the terminal is"
    assert " ".join(lines_of("training", training_rows(), width=40, title=title)[:2]) == title
    lines = lines_of("supplement", supplement_rows(ratios=[0.675], cuts=[1]), width=200)
    assert "front of r = 67.5 %, clean back" in lines[1]


def test_numbers_are_whole_on_an_axis_that_a_figure_would_give_a_factor_or_an_offset():
    rows = [row | {"epoch": row["epoch"] + 10**6} for row in training_rows(ratios=[0.5])]
    text = "\n".join(lines_of("training", [row | {"loss": 1e8 * row["loss"]} for row in rows]))
    assert "1000001" in text and "200000000" in text
