"""memtool info"""

from pathlib import Path
from typing import Annotated

import typer

from memtool.cli import app, options


@app.command()
def info(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Checkpoints or label files", show_default=False),
    ],
    layers: Annotated[
        bool,
        typer.Option(
            "--layers", help="The layers in order of execution: type, shape, and which are cuts"
        ),
    ] = False,
    output: options.Output = None,
    table_format: options.TableFormat = None,
) -> None:
    """Say what a file is: its metadata, or its layers

    One row a file, or with --layers one row a layer: the shape of its output for one image,
    whether the network can be cut there for stitching, and which layer's output is the very same.

    \b
    Examples:
      memtool info runs/r25.safetensors
      memtool info --layers runs/r25.safetensors
    """
    from memtool import description, table
    from memtool.files import check_writable

    path = options.output_path(output)
    if path:
        table.format_of(path, table_format)
        check_writable(path)
    rows = list(description.layers(files) if layers else description.files(files))
    with table.writer(table.LAYERS if layers else table.FILES, path, table_format) as write:
        for row in rows:
            write(row)
