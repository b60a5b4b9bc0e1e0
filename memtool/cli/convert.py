"""memtool convert"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from memtool import MemtoolError
from memtool.cli import app, inputs, options


@app.command()
def convert(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Weights as torch.save writes them (.pt, .pth), a safetensors file, or the index "
            "of several (model.safetensors.index.json)",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the checkpoint to this .safetensors file",
        ),
    ],
    model: options.Model = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATASET",
            help="Record this data set as what the network was trained on",
        ),
    ] = None,
    trust: options.Trust = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Convert foreign weights to a checkpoint

    The weights are checked against the model, tensor by tensor, and written under the names that
    they have in the model, in its types (float32, as a rule). Names with wrappers and layouts of
    other code are recognized, and what stands beside the network is left aside, with a note. Only
    the tensors of a pickle are read, those of a whole pickled module included: nothing in it runs,
    whatever else it holds.

    \b
    Examples:
      memtool convert old_run.pth --model timm:vit_tiny_patch16_224 \\
          -o old_run.safetensors
      memtool convert resnet18.pth -o resnet18.safetensors
    """
    from memtool import checkpoints
    from memtool.files import check_writable
    from memtool.tensors import find_replaced

    options.check_file(output)
    check_writable(output)
    replaced = find_replaced(output, "checkpoint", file)
    if replaced and replaced["training"]:
        raise MemtoolError(
            f"{output}: was trained by memtool, and is not replaced: remove or move it, or choose "
            "another -o"
        )
    spec = inputs.model_spec(model)
    with_data = partial(inputs.load_dataset, dataset, folder=None, memory=options.MEMORY)
    dataset_for = with_data if dataset else None
    checkpoints.convert(file, spec, output, dataset_for, trust)
