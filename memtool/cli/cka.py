"""memtool cka"""

from pathlib import Path
from typing import Annotated

import typer

from memtool.choices import Pairs
from memtool.cli import app, options
from memtool.cli.console import Console


@app.command()
def cka(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT... REFERENCE",
            help="Checkpoints, each compared with the last one named",
            show_default=False,
        ),
    ],
    layers: options.Layers = ["all"],  # noqa: B006 (typer copies it)
    pairs: Annotated[
        Pairs,
        typer.Option(
            "--pairs",
            metavar="PAIRS",
            help="same: corresponding layers; all: the full layer x layer matrix",
        ),
    ] = Pairs.same,
    model: options.Model = None,
    model_reference: Annotated[
        str | None,
        typer.Option(
            "--model-reference",
            metavar="SPEC",
            help="What model REFERENCE is of, if another one",
            show_default=False,
        ),
    ] = None,
    trust: options.Trust = False,
    dataset: options.Data = None,
    data_dir: options.DataDir = None,
    image_size: options.ImageSize = None,
    samples: options.Samples = None,
    batch_size: options.BatchSize = 256,
    output: options.Output = None,
    table_format: options.TableFormat = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Compare checkpoints layer by layer with CKA

    Each checkpoint is compared with the last one named, over the whole test split. Prints one row
    a pair of layers, in order of execution; exact linear CKA, in [0, 1].

    \b
    Examples:
      memtool cka runs/r25.safetensors runs/r0.safetensors --layers all
      memtool cka runs/r25/*.safetensors runs/r25.safetensors \\
          --layers 'block?' -o cka.csv
      memtool cka a.safetensors b.safetensors --pairs all | memtool plot -o f.png
      memtool cka a.safetensors b.safetensors --model torchvision:resnet50 \\
          --data folder:val
    """
    import torch

    from memtool import comparison, table
    from memtool.device import choose
    from memtool.files import check_writable

    if len(checkpoints) < 2:
        raise typer.BadParameter("name a checkpoint and a reference", param_hint="CHECKPOINT")
    path = options.output_path(output)
    if path:
        table.format_of(path, table_format)
        check_writable(path)
    where = choose(device)
    console = Console(quiet)
    opened = options.open_checkpoints(checkpoints, console, model, model_reference, trust)
    set_ = options.load_dataset(
        dataset, opened[-1], data_dir, console, image_size=image_size, samples=samples
    )
    opened = [checkpoint.on(set_) for checkpoint in opened]
    *selections, reference = comparison.selections(opened, options.comma_separated(layers))
    for selection in selections:
        comparison.paired(selection, reference, pairs)
    images = torch.from_numpy(set_.test.images).to(where)
    batches = len(opened) * -(-len(images) // batch_size)
    with (
        table.writer(table.CKA, path, table_format) as write,
        console.progress("comparing", batches) as advance,
    ):
        for row in comparison.compare(selections, reference, images, pairs, batch_size, advance):
            write(row)
            if row["cka"] is None:
                console.warn(
                    f"{row['checkpoint']}: no CKA of {row['layer']} with {row['reference_layer']}: "
                    "one of them is constant over the images"
                )
