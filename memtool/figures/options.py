"""What one asks of a figure besides its kind: which rows and view of them, what size and look."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from memtool import MemtoolError, specs
from memtool.figures.style_file import Parameters, read_style
from memtool.paths import as_path

LAST = "last"  # of the epochs
SUPPLEMENTED = 4  # noise ratios, at most, that a supplement shows where none are asked for
WIDTHS = {"column": 3.3, "page": 6.9}  # inches; of the usual two-column page
NARROWEST, WIDEST = 1.5, 40.0


class XAxis(StrEnum):
    """What the x axis of a figure of CKA is."""

    layer = "layer"
    epoch = "epoch"


@dataclass(frozen=True)
class Options:
    """What one asks of a figure; each that is left as it is leaves the choice to the figure."""

    x: XAxis | None = None
    layers: tuple[str, ...] = ()  # globs
    ratios: tuple[float, ...] = ()  # in [0, 1]
    epochs: tuple[int | str, ...] = ()  # numbers, `last` or `all`
    marks: tuple[str, ...] = ()  # globs: layers at which a line is drawn
    width: float | None = None  # inches
    title: str = ""
    style: Parameters = field(default_factory=dict)
    net_of_control: bool = False


def as_options(
    *,
    x: str | None = None,
    layers: str | Iterable[str] = (),
    ratios: float | Iterable[float] = (),
    epochs: int | str | Iterable[int | str] = (),
    marks: str | Iterable[str] = (),
    width: str | float | None = None,
    title: str = "",
    style: Path | str | None = None,
    net_of_control: bool = False,
) -> Options:
    """Options as one types them: lists, or texts with commas; `column` or `page`; a file of style.

    Raises MemtoolError for a value that is none, and for a style file that cannot be taken.

    >>> as_options(epochs="1,2,last", width="column").epochs
    (1, 2, 'last')
    """
    if x is not None and x not in list(XAxis):
        raise MemtoolError(f"no x axis {str(x)!r}; there are {', '.join(XAxis)}")
    return Options(
        x=XAxis(x) if x is not None else None,
        layers=tuple(_parts(layers)),
        ratios=tuple(specs.ratio(str(part)) for part in _parts(ratios)),
        epochs=tuple(_epoch(part) for part in _parts(epochs)),
        marks=tuple(_parts(marks)),
        width=_inches(width),
        title=title,
        style=read_style(as_path(style)) if style is not None else {},
        net_of_control=net_of_control,
    )


def _parts(given: Any) -> list[Any]:
    """What is given as a list: a text is split at commas, a single value is a list of one."""
    if isinstance(given, str):
        return [part.strip() for part in given.split(",") if part.strip()]
    return list(given) if isinstance(given, Iterable) else [given]


def _epoch(given: Any) -> int | str:
    text = str(given)
    if text in (LAST, "all"):
        return text
    if not text.isdecimal() or len(text) > 9:
        raise MemtoolError(f"{text!r} is not an epoch; name numbers, `last` or `all`")
    return int(text)


def _inches(given: str | float | None) -> float | None:
    if given is None or given in list(WIDTHS):
        return None if given is None else WIDTHS[str(given)]
    try:
        width = float(given)
    except (TypeError, ValueError):
        raise MemtoolError(
            f"width {given!r}: it is one of {', '.join(WIDTHS)}, or a number of inches"
        ) from None
    if not NARROWEST <= width <= WIDEST:
        raise MemtoolError(f"width {given}: it is from {NARROWEST:g} to {WIDEST:g} inches")
    return width
