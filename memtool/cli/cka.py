"""memtool cka"""

from pathlib import Path
from typing import Annotated

import typer

from memtool.cli import app, inputs, options
from memtool.cli.console import logger, progress
from memtool.device import Precision
from memtool.similarity.settings import CkaSettings, Estimator, Kernel, Pairs
from memtool.tables import stdout
from memtool.tables.schema import LARGEST


@app.command()
def cka(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT... REFERENCE",
            help="Checkpoints, each compared with the last one named, or with those of "
            "--reference; a table of stitch --save stands for the stitched models that it names",
        ),
    ],
    references: Annotated[
        list[Path] | None,
        typer.Option(
            "--reference",
            metavar="FILE",
            help="Compare all checkpoints with this one; repeated, with several ones, in the same "
            "forward pass of each checkpoint",
        ),
    ] = None,
    layers: options.Layers = ["all"],  # noqa: B006 (typer copies it)
    layers_reference: Annotated[
        list[str] | None,
        typer.Option(
            "--layers-reference",
            metavar="PATTERNS",
            help="The same for the references, if their layers have other names: the first layer "
            "chosen is compared with the first one chosen there, and so on",
        ),
    ] = None,
    pairs: Annotated[
        Pairs,
        typer.Option(
            "--pairs",
            metavar="PAIRS",
            help="same compares corresponding layers, all each layer with each (the full matrix)",
        ),
    ] = CkaSettings.pairs,
    model: options.Model = None,
    model_reference: Annotated[
        str | None,
        typer.Option(
            "--model-reference",
            metavar="SPEC",
            help="Model spec of the references, if it is another",
        ),
    ] = None,
    trust: options.Trust = False,
    estimator: Annotated[
        Estimator,
        typer.Option(
            "--estimator",
            metavar="ESTIMATOR",
            help="exact (or biased): biased HSIC of all images; unbiased: unbiased HSIC of all "
            "images; minibatch: unbiased HSIC averaged over batches, in memory that does not grow "
            "with their number; auto: exact if it fits into --memory with one forward pass, else "
            "minibatch if that fits, else exact with several passes",
        ),
    ] = CkaSettings.estimator,
    kernel: Annotated[
        Kernel,
        typer.Option(
            "--kernel", metavar="KERNEL", help="linear, or rbf: exp(-distance^2 / (2 sigma^2))"
        ),
    ] = CkaSettings.kernel,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            "--bandwidth",
            metavar="X",
            help="With --kernel rbf: sigma as a multiple of the median distance between the images "
            "(at most 512 of them, evenly spaced)",
            show_default=f"{CkaSettings.bandwidth:g}",
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            help="Precision of the forward passes: float32, tf32 (on CUDA) or bf16; float32 is "
            "used after all if CKA of the first batch changes by more than 0.001",
        ),
    ] = CkaSettings.precision,
    memory: options.Memory = options.MEMORY,
    seed: options.Seed = CkaSettings.seed,
    dataset: options.Data = None,
    data_dir: options.DataDir = None,
    image_size: options.ImageSize = None,
    samples: options.Samples = None,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            help="Images in a batch of minibatch; exact and unbiased take smaller ones where there "
            "would be fewer than ten, for the standard error, or where --memory asks for it",
        ),
    ] = CkaSettings.batch_size,
    output: options.Output = None,
    table_format: options.TableFormat = None,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare checkpoints layer by layer with CKA

    Each checkpoint is compared with the last one named, or with each --reference, on the whole test
    split, in one forward pass of each network. Prints one row per pair of layers, in order of
    execution: CKA, which is in [0, 1] for the exact estimator, and its standard error (jackknife
    over ten groups of batches).

    \b
    Examples:
      memtool cka runs/r25.safetensors runs/r0.safetensors --layers all
      memtool cka runs/r25/*.safetensors runs/r25.safetensors \\
          --layers 'block?' -o cka.csv
      memtool cka runs/r25/*.safetensors --reference runs/r25.safetensors \\
          --reference runs/r0.safetensors -o cka.csv
      memtool cka a.safetensors b.safetensors --pairs all | memtool plot -o f.png
      memtool cka a.safetensors b.safetensors --model torchvision:resnet50 \\
          --data folder:val
      memtool cka stitching.csv runs/r0.safetensors -o supplement.csv
      torchrun --nproc-per-node 2 -m memtool cka a.safetensors b.safetensors
    """
    import json

    from memtool import tables
    from memtool.device import choose, processes
    from memtool.similarity import compare, make_plan, selections

    if not references:
        *checkpoints, references = *checkpoints[:-1], checkpoints[-1:]
    if not checkpoints:
        raise typer.BadParameter("name a checkpoint and a reference", param_hint="CHECKPOINT")
    if bandwidth is not None and kernel is not Kernel.rbf:
        raise typer.BadParameter("it goes with --kernel rbf", param_hint="--bandwidth")
    if bandwidth is None:
        bandwidth = CkaSettings.bandwidth
    if not 0 < bandwidth <= LARGEST:
        told = f"{bandwidth} is not positive, or exceeds {LARGEST:g}"
        raise typer.BadParameter(told, param_hint="--bandwidth")
    settings = CkaSettings(
        pairs, estimator, kernel, bandwidth, precision, batch_size, seed, options.size(memory)
    )
    patterns = options.comma_separated(layers, "--layers")
    reference_patterns = options.comma_separated(layers_reference or [], "--layers-reference")
    path = options.checked_output(output, table_format)
    where = choose(device)
    opened = inputs.open_checkpoints(inputs.named_models(checkpoints), model, trust)
    others = inputs.open_checkpoints(references, model_reference or model, trust)
    set_ = inputs.load_dataset(
        dataset,
        others[-1],
        data_dir,
        memory,
        image_size=image_size,
        samples=samples,
        others=[*opened, *others[:-1]],
    )
    compared_with = selections(
        [checkpoint.with_dataset(set_) for checkpoint in opened],
        [checkpoint.with_dataset(set_) for checkpoint in others],
        patterns,
        reference_patterns,
    )
    images = set_.test.on(where)
    with processes(where) as together:
        plan = make_plan(*compared_with, len(images), settings, together.size)
        logger.info(str(plan))
        if dry_run:
            if not together.rank:
                print(json.dumps(plan.json()), file=stdout())
            return
        rows = compare(plan, images, set_.name, together, progress)
        if together.rank:
            options.take_part(rows)
            return
        options.write(rows, tables.CkaRow, path, table_format)
