"""Writing figures to files: equal figures give equal bytes."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import Collection
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from memtool import MemtoolError
from memtool.figures.options import Options
from memtool.figures.style import LOOK

SAVING: dict[Any, Any] = {
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: journals refuse matplotlib's default, Type 3
    "ps.fonttype": 42,
    "svg.fonttype": "none",  # text remains text: it is found, read aloud and edited
    "svg.hashsalt": "memtool",  # without it, the ids in an SVG are random
}
LAID_OUT = {"figure.autolayout": False, "figure.constrained_layout.use": False}
MOST_PIXELS = 2**16  # along a side of a PNG
METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "png": {},
    "svg": {"Date": None},
    "eps": {},
}
FORMATS = tuple(METADATA)
DATE = b"%%CreationDate"  # in an EPS, which matplotlib always dates


def save(figure: Figure, stream: BinaryIO, format: str, options: Options = Options()) -> None:
    """Write a figure to a binary stream.

    Equal figures give equal bytes: no date is written, and nothing random. Pixels of a PNG are
    1/300 inch wide, letters in a PDF or EPS are TrueType, as journals ask for, and text in an SVG
    is text. What shines through elsewhere is opaque in an EPS, which knows no other. What a layout
    engine arranges is arranged once, when the figure is first saved, so that all its files agree.

    Args:
        figure: A figure that `draw` returned, or any other.
        stream: An open file, or another stream that takes bytes.
        format: "pdf", "png", "svg" or "eps".
        options: Those that the figure was drawn with.

    Raises:
        MemtoolError: If the format is another one, or the figure too large for a PNG.

    >>> import io
    >>> from matplotlib.figure import Figure
    >>> stream = io.BytesIO()
    >>> save(Figure(), stream, "pdf")
    >>> stream.getvalue()[:5]
    b'%PDF-'
    """
    check_format(format)
    width, height = figure.get_size_inches()
    dpi = (SAVING | options.style)["savefig.dpi"]
    dpi = figure.dpi if dpi == "figure" else dpi
    if format == "png" and max(width, height) * dpi >= MOST_PIXELS:
        raise MemtoolError(
            f"a figure of {width:.0f} x {height:.0f} inches, with {dpi:g} pixels each, is too "
            "large for a PNG; leave rows out of the table, or write a PDF or an SVG"
        )
    # LOOK is needed again, since matplotlib makes ticks only when it draws them.
    with matplotlib.rc_context(LOOK | SAVING | options.style | LAID_OUT), _undated():
        _lay_out(figure)
        if format == "eps":
            stream.write(_eps(figure))
        else:
            figure.savefig(stream, format=format, metadata=METADATA[format])


def _lay_out(figure: Figure) -> None:
    """Arrange the axes once and for all: matplotlib would do it anew, and a little differently, for
    each file, and draw everything a second time for it. Letters are measured as those of an SVG,
    which no grid of pixels rounds."""
    if engine := figure.get_layout_engine():
        canvas = figure.canvas
        FigureCanvasSVG(figure)
        engine.execute(figure)
        figure.set_canvas(canvas)
        figure.set_layout_engine(None)


@contextmanager
def _undated() -> Iterator[None]:
    """Without the date in $SOURCE_DATE_EPOCH, whatever it is: matplotlib reads it even if no date
    is written."""
    date = os.environ.pop("SOURCE_DATE_EPOCH", None)
    try:
        yield
    finally:
        if date is not None:
            os.environ["SOURCE_DATE_EPOCH"] = date


def check_format(format: str) -> None:
    """Raise MemtoolError if figures are not saved in this format, with those in which they are."""
    if format == "pgf":
        raise MemtoolError(
            "pgf: matplotlib writes it with the help of LaTeX alone, which would also read the "
            "names in the table; write a PDF or an EPS, which LaTeX includes"
        )
    if format not in METADATA:
        raise MemtoolError(f"no figure format {format!r}; there are {', '.join(METADATA)}")


def _eps(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with _opaque(figure):
        figure.savefig(buffer, format="eps")
    lines = buffer.getvalue().splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(DATE))


@contextmanager
def _opaque(figure: Figure) -> Iterator[None]:
    """What shines through in the colours that it has on white."""
    seen: list[Any] = [
        artist
        for artist in figure.findobj(lambda one: isinstance(one, Collection | Patch))
        if (artist.get_alpha() or 1) < 1
    ]
    before = [(artist.get_alpha(), to_rgba_array(artist.get_facecolor())[:, :3]) for artist in seen]
    for artist, (alpha, color) in zip(seen, before, strict=True):
        artist.set(alpha=None, facecolor=1 - alpha * (1 - color[0]))
    try:
        yield
    finally:
        for artist, (alpha, color) in zip(seen, before, strict=True):
            artist.set(alpha=alpha, facecolor=color[0])
