"""memtool cka"""

from pathlib import Path
from typing import Annotated

import typer

from memtool.cli import app, options
from memtool.cli.console import logger, progress
from memtool.device import Precision
from memtool.similarity.settings import Estimator, Kernel, Pairs


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
    layers_reference: Annotated[
        list[str] | None,
        typer.Option(
            "--layers-reference",
            metavar="PATTERNS",
            help="The same for the reference, where its layers have other names: the first layer "
            "is compared with its first, and so on",
            show_default=False,
        ),
    ] = None,
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
    estimator: Annotated[
        Estimator,
        typer.Option(
            "--estimator",
            metavar="ESTIMATOR",
            help="exact: biased HSIC of all images; unbiased: unbiased HSIC of all; minibatch: "
            "unbiased HSIC averaged over batches, in memory that does not grow with their number; "
            "auto: exact if it fits into --memory with one forward pass, else minibatch",
        ),
    ] = Estimator.auto,
    kernel: Annotated[
        Kernel,
        typer.Option(
            "--kernel", metavar="KERNEL", help="linear, or rbf: exp(-distance^2 / (2 sigma^2))"
        ),
    ] = Kernel.linear,
    bandwidth: Annotated[
        float,
        typer.Option(
            "--bandwidth",
            metavar="X",
            help="Sigma of rbf as a fraction of the median distance between images: in each batch "
            "for minibatch, in the first one for the others",
        ),
    ] = 1.0,
    precision: Annotated[
        Precision,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            help="What the networks compute in: float32, tf32 (on CUDA) or bf16; float32 after all "
            "if another one changes CKA of the first batch by more than 0.001",
        ),
    ] = Precision.float32,
    memory: options.Memory = "4GiB",
    seed: options.Seed = 0,
    dataset: options.Data = None,
    data_dir: options.DataDir = None,
    image_size: options.ImageSize = None,
    samples: options.Samples = None,
    batch_size: options.BatchSize = 256,
    output: options.Output = None,
    table_format: options.TableFormat = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare checkpoints layer by layer with CKA

    Each checkpoint is compared with the last one named, over the whole test split, in one forward
    pass of each network. Prints one row a pair of layers, in order of execution: CKA, with exact
    HSIC in [0, 1], and its standard error (jackknife over ten groups of batches).

    \b
    Examples:
      memtool cka runs/r25.safetensors runs/r0.safetensors --layers all
      memtool cka runs/r25/*.safetensors runs/r25.safetensors \\
          --layers 'block?' -o cka.csv
      memtool cka a.safetensors b.safetensors --pairs all | memtool plot -o f.png
      memtool cka a.safetensors b.safetensors --model torchvision:resnet50 \\
          --data folder:val
      torchrun --nproc-per-node 2 -m memtool cka a.safetensors b.safetensors
    """
    import torch

    from memtool import tables
    from memtool.device import choose, processes
    from memtool.files import check_writable
    from memtool.similarity import CkaSettings, compare, make_plan, selections

    if len(checkpoints) < 2:
        raise typer.BadParameter("name a checkpoint and a reference", param_hint="CHECKPOINT")
    if not bandwidth > 0:
        raise typer.BadParameter(f"{bandwidth} is not positive", param_hint="--bandwidth")
    settings = CkaSettings(
        pairs, estimator, kernel, bandwidth, precision, batch_size, seed, options.size(memory)
    )
    path = options.output_path(output)
    if path:
        tables.format_of(path, table_format)
        check_writable(path)
    where = choose(device)
    opened = options.open_checkpoints(checkpoints, model, model_reference, trust)
    set_ = options.load_dataset(
        dataset, opened[-1], data_dir, image_size=image_size, samples=samples
    )
    opened = [checkpoint.with_dataset(set_) for checkpoint in opened]
    *compared, reference = selections(
        opened,
        options.comma_separated(layers),
        options.comma_separated(layers_reference) if layers_reference else None,
    )
    images = torch.from_numpy(set_.test.images).to(where)
    with processes(where) as together:
        plan = make_plan(compared, reference, len(images), settings, together.size)
        logger.info(str(plan))
        rows = compare(plan, reference, images, settings, together, progress)
        if together.rank:
            options.take_part(rows)
            return
        options.write(rows, tables.CkaRow, path, table_format)
