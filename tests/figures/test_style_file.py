"""Style files: what they set is heeded, and what is wrong with one is told."""

import logging

import pytest

from memtool import MemtoolError
from memtool.figures import as_options, draw
from memtool.figures.style_file import read_style

from .examples import training_rows


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lines.width: 3\n", "mine.mplstyle: Bad key lines.width in file .* line 1"),
        ("\nlines.linewidth: thick\n", "mine.mplstyle: Bad value in file .* line 2"),
        ("lines.linewidth 3\n", "mine.mplstyle: Missing colon in file .* line 1"),
        ("text.usetex: True\n", "mine.mplstyle: a style may not set text.usetex"),
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
