"""memtool plot"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memtool import MemtoolError, tables
from memtool.cli import app
from memtool.cli.options import Quiet, comma_separated, write
from memtool.cli.options import ratios as as_ratios
from memtool.figures.options import XAxis

if TYPE_CHECKING:
    from memtool.figures import Options


@app.command()
def plot(
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The figure, as .png, .pdf, .svg or .eps, or the values in it, as .csv, .tsv or "
            ".jsonl; may be repeated",
        ),
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KIND] TABLE...",
            help="convergence, stitching, divergence, supplement, heatmap or training (found from "
            "the columns if left out), then tables of train, cka or stitch; - is stdin, and so "
            "is no table",
        ),
    ] = None,
    net_of_control: Annotated[
        bool,
        typer.Option(
            "--net-of-control",
            help="For stitching, draw the test accuracy minus that of the control at the same cut",
        ),
    ] = False,
    x: Annotated[
        XAxis | None,
        typer.Option(
            "--x",
            metavar="AXIS",
            help="For convergence and divergence, what the x axis is: layers, with a curve per "
            "epoch (or per noise ratio, of one epoch), or epochs, with a panel per layer "
            "(by default the latter up to eight layers)",
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers",
            metavar="PATTERN",
            help="Show these layers or cuts alone: globs, in which * crosses dots, separated by "
            "commas; in a heatmap, name them all as well",
        ),
    ] = None,
    ratios: Annotated[
        list[str] | None,
        typer.Option(
            "--ratios",
            metavar="RATIO",
            help="Show these noise ratios alone, in [0, 1] or in percent",
        ),
    ] = None,
    epochs: Annotated[
        str | None,
        typer.Option(
            "--epochs",
            metavar="LIST",
            help="Show these epochs alone, as in 1,2,4,last, or all; by default all, and with "
            "layers on the x axis the first, those that double, and the last",
        ),
    ] = None,
    marks: Annotated[
        list[str] | None,
        typer.Option(
            "--marks",
            metavar="PATTERN",
            help="With layers on the x axis, draw a line at these layers instead of at those that "
            "end a stage of the network, such as layer1 or block2",
        ),
    ] = None,
    width: Annotated[
        str | None,
        typer.Option(
            "--width",
            metavar="WIDTH",
            help="Width of the figure: column (3.3 inches), page (6.9) or a number of inches; by "
            "default what the figure needs, up to a page, or beyond for the names in a heatmap",
        ),
    ] = None,
    title: Annotated[
        str, typer.Option("--title", metavar="TEXT", help="Title above the figure")
    ] = "",
    style: Annotated[
        Path | None,
        typer.Option(
            "--style",
            metavar="FILE",
            help="Style file of matplotlib (.mplstyle): fonts, sizes, lines, margins",
        ),
    ] = None,
    terminal: Annotated[
        bool,
        typer.Option("--terminal", help="Show the figure on the terminal, too, drawn with letters"),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Draw the figures of the paper from tables

    Rows that share all conditions but the seed are averaged, and their spread is drawn. A table may
    compare checkpoints both with their own runs and with the clean one: convergence shows the rows
    of the former, divergence those of the latter.

    \b
    Examples:
      memtool plot stitching.csv -o figure2.pdf
      memtool plot convergence tables/*.csv -o figure1.png -o figure1.pdf
      memtool plot divergence cka.csv --x layer --width column -o f.pdf
      memtool cka a.safetensors b.safetensors --pairs all | memtool plot -o f.png
      memtool cka stitched/*.safetensors r0.safetensors | memtool plot -o s.png
      memtool plot training.csv --terminal
    """
    import sys

    from memtool import figures
    from memtool.files import check_writable, replacing
    from memtool.paths import expanded

    options = _options(
        x=x,
        layers=comma_separated(layers or [], "--layers"),
        ratios=as_ratios(ratios or [], "--ratios"),
        epochs=comma_separated([] if epochs is None else [epochs], "--epochs"),
        marks=comma_separated(marks or [], "--marks"),
        width=width,
        title=title,
        style=style,
        net_of_control=net_of_control,
    )
    names = list(sources or [])
    kind = figures.Kind(names.pop(0)) if names and names[0] in set(figures.Kind) else None
    names = [name if name == "-" else str(expanded(name)) for name in names]
    for name in names:
        _check_is_no_kind(name)
    if not names and sys.stdin.isatty():
        raise typer.BadParameter("name a table, or pipe one in", param_hint="TABLE")
    if not output and not terminal:
        raise typer.BadParameter("name a file, or show the figure by --terminal", param_hint="-o")
    output = output or []
    for path in output:
        if path == Path("-"):
            raise typer.BadParameter("-: name a file, whose suffix says what", param_hint="-o")
        if not tables.format_by_suffix(path):
            try:
                figures.check_format(_format(path))
            except MemtoolError as error:
                raise MemtoolError(
                    f"{path}: {error}; a table ends in .csv, .tsv or .jsonl"
                ) from error
        check_writable(path)
        drawn = [name for name in names if Path(name).exists()]
        if path.exists() and any(map(path.samefile, drawn)):
            raise typer.BadParameter(f"{path}: is a table that is drawn", param_hint="-o")
    rows = [
        row for name in names or ["-"] for row in tables.read(None if name == "-" else Path(name))
    ]
    kind = kind or figures.recognize(rows)
    with _usage():
        figures.check_options(kind, options)
    figure = figures.draw(kind, rows, options)
    for path in output:
        if not tables.format_by_suffix(path):
            with replacing(path) as temporary, open(temporary, "wb") as stream:
                figures.save(figure, stream, _format(path), options)
        else:
            write(figures.points(figure), tables.PointRow, path, None)
    if terminal:
        out = tables.stdout()
        typer.echo(figures.as_text(figure, styled=out.isatty()), file=out, nl=False)


def _check_is_no_kind(name: str) -> None:
    """Raise a usage error for what stands for a table, is no file, and is nearly a kind."""
    from difflib import get_close_matches

    from memtool.figures import Kind

    if Path(name).suffix or Path(name).exists():
        return
    if nearest := get_close_matches(name, list(Kind), n=1):
        raise typer.BadParameter(
            f"{name}: no such file; did you mean the kind {nearest[0]}, which goes before the "
            "tables?",
            param_hint="TABLE",
        )


def _options(**typed: Any) -> "Options":
    from memtool.figures import as_options

    with _usage():
        return as_options(**typed)


@contextmanager
def _usage() -> Iterator[None]:
    """Make a MemtoolError a usage error."""
    try:
        yield
    except MemtoolError as error:
        raise typer.BadParameter(str(error)) from error


def _format(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()
