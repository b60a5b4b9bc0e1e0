"""memtool convert"""

from pathlib import Path
from typing import Annotated

import typer

from memtool.cli import app, options


@app.command()
def convert(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Weights: .pt or .pth as torch.save writes them, or safetensors",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The checkpoint to write, .safetensors",
            show_default=False,
        ),
    ],
    model: options.Model = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATASET",
            help="What the network was trained on, to be recorded",
            show_default=False,
        ),
    ] = None,
    trust: options.Trust = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a checkpoint of weights that memtool did not write

    The weights are checked against the model, tensor by tensor, and written in float32 under their
    plain names. A pickle is read for its tensors alone: nothing in it runs.

    \b
    Examples:
      memtool convert old_run.pth --model timm:vit_tiny_patch16_224 \\
          -o old_run.safetensors
      memtool convert resnet18.pth -o resnet18.safetensors
    """
    from memtool.checkpoints import conversion
    from memtool.files import check_writable

    options.check_file(output)
    check_writable(output)
    spec = options.model_spec(model)
    set_ = options.load_data(dataset, None) if dataset else None
    conversion.convert(file, spec, output, set_, trust)
