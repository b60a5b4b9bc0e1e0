"""memtool plot"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from memtool import tables
from memtool.cli import app


@app.command()
def plot(
    output: Annotated[
        list[Path],
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The figure, as .png, .pdf or .svg, or the rows of all tables, as .csv, .tsv or "
            ".jsonl; may be repeated",
            show_default=False,
        ),
    ],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KIND] TABLE...",
            help="convergence, stitching, divergence, heatmap or training (found from the columns "
            "if left out), then tables of train, cka or stitch; - is stdin, and so is no table",
            show_default=False,
        ),
    ] = None,
    net_of_control: Annotated[
        bool,
        typer.Option(
            "--net-of-control",
            help="For stitching, draw the test accuracy minus that of the control at the same cut",
        ),
    ] = False,
) -> None:
    """Draw the figures of the paper from tables

    Rows that share all conditions but the seed are averaged, and their spread is drawn.

    \b
    Examples:
      memtool plot stitching.csv -o figure2.pdf
      memtool plot convergence tables/*.csv -o figure1.png -o figure1.pdf
      memtool cka a.safetensors b.safetensors --pairs all | memtool plot -o f.png
    """
    import sys

    from memtool import figures
    from memtool.files import check_writable, replacing

    names = list(sources or [])
    kind = figures.Kind(names.pop(0)) if names and names[0] in set(figures.Kind) else None
    if not names and sys.stdin.isatty():
        raise typer.BadParameter("name a table, or pipe one in", param_hint="TABLE")
    for path in output:
        if path == Path("-"):
            raise typer.BadParameter("-: name a file, whose suffix says what", param_hint="-o")
        if _format(path) not in figures.FORMATS:
            tables.format_of(path, None)
        check_writable(path)
    rows = [
        row for name in names or ["-"] for row in tables.read(None if name == "-" else Path(name))
    ]
    kind = kind or figures.recognize(rows)
    if net_of_control and kind is not figures.Kind.stitching:
        raise typer.BadParameter(f"{kind} has no control", param_hint="--net-of-control")
    figure = figures.draw(kind, rows, net_of_control=net_of_control)
    for path in output:
        if _format(path) in figures.FORMATS:
            with replacing(path) as temporary, open(temporary, "wb") as stream:
                figures.save(figure, stream, _format(path))
        else:
            _write_rows(rows, path)


def _format(path: Path) -> str:
    return path.suffix.removeprefix(".")


def _write_rows(rows: Sequence[tables.Row], path: Path) -> None:
    """Write rows of several tables as one: a cell is empty where a row lacks the column."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with tables.writer(columns, path, None) as write:
        for row in rows:
            write({name: row.get(name) for name in columns})
