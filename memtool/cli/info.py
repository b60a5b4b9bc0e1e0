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
    model: options.Model = None,
    trust: options.Trust = False,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            metavar="N",
            min=1,
            help="With --layers: the shapes for images of NxN; else of those on record, or of "
            "those that the model is usually given",
            show_default=False,
        ),
    ] = None,
    output: options.Output = None,
    table_format: options.TableFormat = None,
    quiet: options.Quiet = False,
) -> None:
    """Say what a file is: its metadata, or its layers

    One row a file, or with --layers one row a layer: the shape of its output for one image,
    whether the network can be cut there for stitching, and which layer's output is the very same.
    A checkpoint that memtool did not write is recognized where it can be.

    \b
    Examples:
      memtool info runs/r25.safetensors
      memtool info --layers runs/r25.safetensors
      memtool info --layers weights.safetensors --model timm:vit_tiny_patch16_224
    """
    from memtool import tables
    from memtool.checkpoints import description
    from memtool.files import check_writable

    path = options.output_path(output)
    if path:
        tables.format_of(path, table_format)
        check_writable(path)
    if layers:
        checkpoints = options.open_checkpoints(files, model, trust=trust)
        rows = list(description.layers(checkpoints, image_size))
    else:
        rows = list(description.files(files, options.model_spec(model)))
    with tables.writer(tables.LayerRow if layers else tables.FileRow, path, table_format) as write:
        for row in rows:
            write(row)
