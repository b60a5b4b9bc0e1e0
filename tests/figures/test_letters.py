"""Names in any script, in figures: from a font that has the letters, or as escapes."""

import io
import logging
import warnings

import matplotlib
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from memtool.figures import as_options, draw, letters, save
from memtool.figures.saving import FORMATS

from .examples import QUICK, each_kind, pair_rows, titles, training_rows

LAYERS = ["层一", "كتلة", "bloc é", "🦊", "a\nb\x1b", "\udce9\udcff"]


@pytest.fixture
def no_fonts(monkeypatch):
    """No fonts but those of matplotlib."""
    monkeypatch.setattr(letters, "_others", lambda: [])


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A font, just installed, whose only letters are 层 and 一: squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 700), (900, 700), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", "one", "two"]
    font = FontBuilder(1000)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord("层"): "one", ord("一"): "two"})
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Two Squares", "styleName": "Regular"})
    font.setupOS2(sTypoAscender=800, usWeightClass=400)
    font.setupPost()
    font.save(tmp_path / "squares.ttf")
    known = list(font_manager.fontManager.ttflist)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", known)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "squares.ttf")])
    letters._others.cache_clear()
    letters._charmap.cache_clear()
    yield "Two Squares"
    letters._others.cache_clear()
    letters._charmap.cache_clear()


def shown(rows, kind="heatmap"):
    """The figure, saved in each format, where a warning of matplotlib is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(kind, rows)
        for format in FORMATS if kind == "heatmap" else QUICK:
            save(figure, io.BytesIO(), format)
        figure.savefig(io.BytesIO())  # as in a notebook
    return figure


def ticks(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_letters_that_no_font_has_are_escaped_with_one_warning(no_fonts, caplog):
    figure = shown(pair_rows(layers=LAYERS))
    assert ticks(figure) == [
        r"\u5c42\u4e00",
        "كتلة",  # matplotlib's own font has Arabic
        "bloc é",
        r"\U0001f98a",
        r"a\nb\x1b",
        r"\udce9\udcff",
    ]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.name == "memtool" and "no installed font has 层 一" in warning.getMessage()


def test_a_font_that_has_the_letters_is_found_without_a_warning(installed, caplog):
    figure = shown(pair_rows(layers=["层一", "fc"]))
    assert ticks(figure) == ["层一", "fc"]
    assert installed in figure.axes[0].get_yticklabels()[0].get_fontfamily()
    assert caplog.records == []
    assert installed not in matplotlib.rcParams["font.family"]


def test_letters_of_names_that_a_figure_does_not_show_need_no_font(no_fonts, caplog):
    shown([row | {"data": "folder:层"} for row in pair_rows()])
    assert caplog.records == []


@each_kind
def test_names_in_any_script_are_drawn_in_each_figure(no_fonts, kind, rows):
    def renamed(value):
        return value.replace("block", "层").replace("conv", "🦊\x07") + "\udcff" * (value == "fc")

    named = ("layer", "reference_layer", "front_layer", "back_layer", "checkpoint", "front")
    rows = [row | {name: renamed(row[name]) for name in named if name in row} for row in rows]
    figure = shown(rows, kind)
    text = "".join(titles(figure)) + "".join(ticks(figure))
    assert not {"层", "\x07", "\udcff"} & set(text)


def test_a_name_without_end_keeps_its_end():
    assert letters.drawable("a" * 5000 + "b") == "…" + "a" * 58 + "b"
    shown(pair_rows(layers=["x" * 4000, "fc"]))


def test_a_title_has_the_letters_of_names(caplog, no_fonts):
    figure = draw("training", training_rows(), as_options(title="\u0dc5 of $x$"))
    assert figure.texts[-1].get_text() == "\\u0dc5 of $x$"
    assert "no installed font has \u0dc5" in caplog.text
