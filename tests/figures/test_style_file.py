"""Style files: what they set is heeded, and what is wrong with one is told."""

import logging

import matplotlib
import pytest

from memtool import MemtoolError
from memtool.figures import as_options, draw
from memtool.figures.style import LOOK
from memtool.figures.style_file import read_style

from .examples import divergence_rows, overlap, training_rows


def style_file(folder, text):
    path = folder / "mine.mplstyle"
    path.write_text(text)
    return path


def test_a_style_changes_the_look_of_a_figure(tmp_path):
    path = style_file(tmp_path, "# mine\nlines.linewidth: 3\naxes.spines.right: True\n")
    figure = draw("training", training_rows(), as_options(style=path))
    axes = figure.axes[0]
    assert {line.get_linewidth() for line in axes.lines} == {3}
    assert axes.spines["right"].get_visible()
    assert not draw("training", training_rows()).axes[0].spines["right"].get_visible()


def test_the_legend_and_the_title_have_room_for_larger_letters(tmp_path):
    path = style_file(tmp_path, "font.size: 12\nlegend.fontsize: large\n")
    options = as_options(style=path, width="column", title="A title of several words " * 2)
    figure = draw("divergence", divergence_rows(epochs=[4]), options)
    with matplotlib.rc_context(LOOK | options.style):
        figure.draw_without_rendering()
        parts = (figure.texts[-1], figure.legends[0], figure.axes[0])
        title, legend, panel = (part.get_window_extent() for part in parts)
    for box in (title, legend):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    assert not overlap(title, legend)
    assert not overlap(legend, panel)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lines.width: 3\n", "mine.mplstyle: Bad key lines.width in file .* line 1"),
        ("\nlines.linewidth: thick\n", "mine.mplstyle: Bad value in file .* line 2"),
        ("lines.linewidth 3\n", "mine.mplstyle: Missing colon in file .* line 1"),
        ("text.usetex: True\n", "mine.mplstyle: a style may not set text.usetex"),
        ("ps.usedistiller: ghostscript\n", "mine.mplstyle: a style may not set ps.usedistiller"),
        (f"font.family: {'x, ' * 60}y\n", "mine.mplstyle: font.family has 61 values, more than 50"),
        ("font.family: \udcff\n", "cannot be read as a style: UnicodeDecodeError"),
    ],
)
def test_what_is_wrong_with_a_style_is_told_once(tmp_path, caplog, text, message):
    path = tmp_path / "mine.mplstyle"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(MemtoolError, match=message) as error, caplog.at_level(logging.WARNING):
        read_style(path)
    assert "\n" not in str(error.value)


def test_a_style_that_is_not_there_is_told(tmp_path):
    with pytest.raises(MemtoolError, match="none.mplstyle: cannot be read as a style"):
        as_options(style=tmp_path / "none.mplstyle")
