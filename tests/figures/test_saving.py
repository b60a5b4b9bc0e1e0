"""Saving: equal figures give equal bytes, in formats that journals take."""

import io
import locale
import logging
import os
import re

import matplotlib
import pytest
from matplotlib.figure import Figure

from memtool import MemtoolError
from memtool.figures import as_options, draw, save
from memtool.figures.saving import FORMATS

from .examples import (
    QUICK,
    TABLES,
    bands,
    convergence_rows,
    divergence_rows,
    each_kind,
    training_rows,
)

BEGINNINGS = {"pdf": b"%PDF-", "png": b"\x89PNG", "svg": b"<?xml", "eps": b"%!PS-Adobe-3.0 EPSF"}


def saved(figure, format, options=None):
    stream = io.BytesIO()
    save(figure, stream, format, *([options] if options else []))
    return stream.getvalue()


@each_kind
def test_what_is_saved_second_is_as_if_it_were_the_first(kind, rows):
    figure, fresh = draw(kind, rows), draw(kind, rows)
    saved(figure, "pdf")
    assert saved(figure, "svg") == saved(fresh, "svg")


@each_kind
def test_equal_figures_give_equal_bytes(kind, rows):
    first, second = draw(kind, rows), draw(kind, rows)
    for format in FORMATS if kind == "heatmap" else QUICK:
        data = saved(first, format)
        assert data.startswith(BEGINNINGS[format])
        assert data == saved(second, format)


# What somebody's matplotlibrc may set. LaTeX would be another program, which reads names in tables.
OWN = {
    "axes.formatter.use_locale": True,
    "text.usetex": True,
    "savefig.bbox": "tight",
    "savefig.transparent": True,
    "font.family": ["serif"],
    "axes.grid": True,
}


@pytest.mark.parametrize(("kind", "format"), [("training", "svg"), ("heatmap", "png")])
def test_the_settings_of_the_user_and_of_the_country_change_no_byte(kind, format, monkeypatch):
    plain = saved(draw(kind, TABLES[kind]), format)
    monkeypatch.setattr(locale, "_override_localeconv", {"decimal_point": ","})
    with matplotlib.rc_context(OWN):
        assert saved(draw(kind, TABLES[kind]), format) == plain


def test_files_carry_no_date_and_fonts_that_journals_take():
    figure = draw("training", training_rows())
    pdf, svg, eps = (saved(figure, format) for format in ("pdf", "svg", "eps"))
    assert b"/CreationDate" not in pdf and b"dc:date" not in svg and b"CreationDate" not in eps
    assert b"/Type3" not in pdf and b"/CIDFontType2" in pdf
    assert b"/FontType 42 def" in eps and b"/FontType 3 def" not in eps


@pytest.mark.parametrize("format", FORMATS)
def test_the_date_that_builds_go_by_changes_no_byte(format, monkeypatch):
    plain = saved(figure := draw("training", training_rows()), format)
    for date in ("86400", "yesterday", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", date)
        assert saved(figure, format) == plain
        assert os.environ["SOURCE_DATE_EPOCH"] == date


def test_text_in_an_svg_is_text():
    rows = [row | {"layer": row["layer"] + " <a&b>"} for row in divergence_rows()]
    svg = saved(draw("divergence", rows), "svg").decode()
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"noise ratio r (%)", "CKA to final clean model", "epoch", "0.8"} <= set(texts)
    assert "fc &lt;a&amp;b&gt;" in texts


def test_bands_in_an_eps_are_light_and_afterwards_as_before(caplog):
    figure = draw("convergence", convergence_rows(seeds=(0, 1)))
    before = saved(figure, "pdf")
    with caplog.at_level(logging.WARNING):
        eps = saved(figure, "eps").decode("latin-1")
    assert not caplog.records  # matplotlib warns of what it cannot show through
    color = bands(figure.axes[-1])[-1].get_facecolor()[0, :3]
    light = 1 - 0.25 * (1 - color)
    assert " ".join(f"{part:.3f}" for part in light) + " setrgbcolor" in eps
    assert saved(figure, "pdf") == before


def test_a_style_is_heeded_when_saving(tmp_path):
    style = tmp_path / "mine.mplstyle"
    style.write_text("xtick.direction: in\nsavefig.dpi: 50\n")
    options = as_options(style=style, width=4)
    data = saved(draw("training", training_rows(), options), "png", options)
    assert int.from_bytes(data[16:20], "big") == 200  # pixels


@pytest.mark.parametrize(
    ("format", "message"),
    [("gif", "'gif'; there are pdf, png, svg, eps"), ("pgf", "pgf: matplotlib writes it .* LaTeX")],
)
def test_an_unknown_format_is_refused(format, message):
    with pytest.raises(MemtoolError, match=message):
        save(Figure(), io.BytesIO(), format)
