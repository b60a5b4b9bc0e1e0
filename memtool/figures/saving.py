"""Writing figures to files: equal figures give equal bytes."""

from typing import Any, BinaryIO

import matplotlib
from matplotlib.figure import Figure

from memtool import MemtoolError
from memtool.figures.options import Options
from memtool.figures.style import LOOK

SAVING: dict[Any, Any] = {
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: journals refuse matplotlib's default, Type 3
    "svg.hashsalt": "memtool",  # without it, the ids in an SVG are random
}
MOST_PIXELS = 2**16  # along a side of a PNG
METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "png": {},
    "svg": {"Date": None},
}
FORMATS = tuple(METADATA)


def save(figure: Figure, stream: BinaryIO, format: str, options: Options = Options()) -> None:
    """Write a figure to a binary stream.

    Equal figures give equal bytes: no date is written, and nothing random. Pixels of a PNG are
    1/300 inch wide, and letters in a PDF are TrueType, as journals ask for.

    Args:
        figure: A figure that `draw` returned, or any other.
        stream: An open file, or another stream that takes bytes.
        format: "pdf", "png" or "svg".
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
    if format not in METADATA:
        raise MemtoolError(f"no figure format {format!r}; there are {', '.join(METADATA)}")
    width, height = figure.get_size_inches()
    if format == "png" and max(width, height) * SAVING["savefig.dpi"] >= MOST_PIXELS:
        raise MemtoolError(
            f"a figure of {width:.0f} x {height:.0f} inches is too large for a PNG; leave rows out "
            "of the table, or write a PDF or an SVG"
        )
    # LOOK is needed again, since matplotlib makes ticks only when it draws them.
    with matplotlib.rc_context(LOOK | SAVING | options.style):
        figure.savefig(stream, format=format, metadata=METADATA[format])
