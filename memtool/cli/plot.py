"""memtool plot"""

from pathlib import Path
from typing import Annotated

import typer

from memtool.cli import app


@app.command()
def plot(
    output: Annotated[
        list[Path],
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Figure, .png, .pdf or .svg, or the rows drawn, .csv, .tsv or .jsonl; may repeat",
            show_default=False,
        ),
    ],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KIND] TABLE...",
            help="convergence, stitching, divergence, heatmap or training (found from the columns "
            "when left out), and tables of train, cka or stitch; - or none is stdin",
            show_default=False,
        ),
    ] = None,
    net_of_control: Annotated[
        bool,
        typer.Option(
            "--net-of-control",
            help="Of stitching, draw the test accuracy less that of the control at the same cut",
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

    from memtool import tables
    from memtool.figures import figures as plot
    from memtool.files import check_writable, replacing

    names = list(sources or [])
    kind = plot.Kind(names.pop(0)) if names and names[0] in set(plot.Kind) else None
    if not names and sys.stdin.isatty():
        raise typer.BadParameter("name a table, or pipe one in", param_hint="TABLE")
    for path in output:
        if path == Path("-"):
            raise typer.BadParameter("-: name a file, whose suffix says what", param_hint="-o")
        if path.suffix.removeprefix(".") not in plot.METADATA:
            tables.format_of(path, None)
        check_writable(path)
    rows = [
        row for name in names or ["-"] for row in tables.read(None if name == "-" else Path(name))
    ]
    kind = kind or plot.recognize(rows)
    if net_of_control and kind is not plot.Kind.stitching:
        raise typer.BadParameter(f"{kind} has no control", param_hint="--net-of-control")
    figure = plot.stitching(rows, net_of_control) if net_of_control else plot.draw(kind, rows)
    for path in output:
        suffix = path.suffix.removeprefix(".")
        if suffix in plot.METADATA:
            with replacing(path) as temporary, open(temporary, "wb") as stream:
                plot.save(figure, stream, suffix)
        else:
            with tables.writer(list(rows[0]), path, None) as write:
                for row in rows:
                    write(row)
