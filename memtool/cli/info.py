"""memtool info"""

from pathlib import Path
from typing import Annotated

import typer

from memtool.cli import app, inputs, options
from memtool.metadata import MAX_IMAGE


@app.command()
def info(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Checkpoints or label files"),
    ],
    layers: Annotated[
        bool,
        typer.Option(
            "--layers", help="Show the layers of a checkpoint's model, in order of execution"
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
            max=MAX_IMAGE,
            help="With --layers: show the shapes for images of NxN pixels; by default the size on "
            "record, or the one that the model is usually given",
        ),
    ] = None,
    output: options.Output = None,
    table_format: options.TableFormat = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show a file's metadata or its layers

    Prints one row per file or, with --layers, one row per layer: the shape of its output for one
    image, whether the network can be cut there for stitching, and the layer whose output is the
    very same tensor, if there is one. Checkpoints that memtool did not write are recognized by
    their config.json or their tensors where possible.

    \b
    Examples:
      memtool info runs/r25.safetensors
      memtool info --layers runs/r25.safetensors
      memtool info --layers weights.safetensors --model timm:vit_tiny_patch16_224
    """
    from memtool import tables
    from memtool.checkpoints import file_rows, layer_rows

    if image_size is not None and not layers:
        raise typer.BadParameter("it goes with --layers", param_hint="--image-size")
    path = options.checked_output(output, table_format)
    rows: list[tables.LayerRow] | list[tables.FileRow]
    if layers:
        checkpoints = inputs.open_checkpoints(files, model, trust)
        rows = list(layer_rows(checkpoints, image_size))
    else:
        rows = list(file_rows(files, inputs.model_spec(model)))
    options.write(rows, tables.LayerRow if layers else tables.FileRow, path, table_format)
