"""memtool stitch"""

from pathlib import Path
from typing import Annotated

import typer

from memtool.cli import app, inputs, options
from memtool.cli.console import progress
from memtool.device import is_first
from memtool.models import Connector
from memtool.stitching import Init
from memtool.tables import stdout


@app.command()
def stitch(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="FRONT... BACK",
            help="Checkpoints whose fronts are used, then the one whose back is used",
        ),
    ],
    at: Annotated[
        list[str],
        typer.Option(
            "--at",
            metavar="CUTS",
            help="Where to cut: globs on layer names, or FRONT_LAYER=BACK_LAYER; may be repeated "
            "or separated by commas; 'all' is every cut (memtool info --layers FILE lists them)",
        ),
    ] = ["all"],  # noqa: B006 (typer copies it)
    both: Annotated[
        bool,
        typer.Option("--both", help="Also the reverse: the front of BACK with the back of FRONT"),
    ] = False,
    control: Annotated[
        bool, typer.Option("--control", help="Also the control: each FRONT with its own back")
    ] = False,
    connector: Annotated[
        Connector,
        typer.Option(
            "--connector",
            metavar="KIND",
            help="Kind of stitching layer: conv1x1 (maps channels), linear (for vectors and "
            "tokens; maps are flattened), none (the identity), or auto: conv1x1 for maps and "
            "volumes, linear for vectors and tokens",
        ),
    ] = Connector.auto,
    resize: Annotated[
        bool,
        typer.Option(
            "--resize", help="Interpolate where heights and widths, or numbers of tokens, differ"
        ),
    ] = False,
    batch_norm: Annotated[
        bool,
        typer.Option("--batch-norm", help="Put batch norm before and after the stitching layer"),
    ] = False,
    init: Annotated[
        Init,
        typer.Option(
            "--init",
            metavar="INIT",
            help="Initialization of the stitching layer: lstsq (least squares), identity or random",
        ),
    ] = Init.lstsq,
    epochs: Annotated[
        int,
        typer.Option(
            "--epochs", metavar="N", min=0, help="Epochs of training; 0 keeps the initialization"
        ),
    ] = 5,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", metavar="RATE", min=0, help="Learning rate of Adam")
    ] = 2e-3,
    batch_size: options.BatchSize = 128,
    curve: Annotated[
        bool,
        typer.Option(
            "--curve", help="Print a row for the initialization (epoch 0) and for each epoch"
        ),
    ] = False,
    seed: options.Seed = 0,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="DIR",
            help="Save the stitched models as DIR/FRONT--CUT--BACK.safetensors",
        ),
    ] = None,
    model: options.Model = None,
    model_back: Annotated[
        str | None,
        typer.Option(
            "--model-back",
            metavar="SPEC",
            help="Model spec of BACK, if it is another",
        ),
    ] = None,
    trust: options.Trust = False,
    dataset: options.Data = None,
    data_dir: options.DataDir = None,
    image_size: options.ImageSize = None,
    split_at: options.SplitAt = None,
    memory: options.Memory = options.MEMORY,
    output: options.Output = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue a stopped sweep where it left off, if there is one; needs -o"
        ),
    ] = False,
    table_format: options.TableFormat = None,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Stitch the front of one network to the back of another

    Between the two goes a stitching layer, a 1x1 convolution or a linear layer. It alone is
    trained, on the true labels of the training images, and the whole is tested. Prints one row per
    cut and direction. A stitched model is a checkpoint that every command takes. The processes of a
    torchrun share the cuts.

    \b
    Examples:
      memtool stitch runs/r50.safetensors runs/r0.safetensors --at all
      memtool stitch runs/r*.safetensors runs/r0.safetensors --at 'block?' \\
          --both --control -o stitching.csv --resume
      memtool stitch resnet.safetensors vgg.safetensors --resize \\
          --at layer2=features.13 --epochs 10 --curve
    """
    import json

    from memtool import tables
    from memtool.device import choose, processes
    from memtool.stitching import Direction, StitchSettings, Sweep
    from memtool.training import Optimizer, Schedule, TrainConfig

    if len(checkpoints) < 2:
        raise typer.BadParameter("name a front and a back", param_hint="FRONT")
    cuts = options.comma_separated(at, "--at")
    path = options.checked_output(output, table_format)
    if resume and path is None:
        raise typer.BadParameter("name the table (-o FILE)", param_hint="--resume")
    where = choose(device)
    settings = StitchSettings(
        directions=(
            Direction.forward,
            *([Direction.reverse] if both else []),
            *([Direction.control] if control else []),
        ),
        config=TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            optimizer=Optimizer.adam,
            learning_rate=learning_rate,
            weight_decay=0.0,
            schedule=Schedule.constant,
            warmup=0.0,
            seed=seed,
        ),
        connector=connector,
        init=init,
        batch_norm=batch_norm,
        resize=resize,
        memory=options.size(memory),
        curve=curve,
    )
    opened = inputs.open_checkpoints(checkpoints[:-1], model, trust)
    opened += inputs.open_checkpoints(checkpoints[-1:], model_back or model, trust)
    set_ = inputs.load_dataset(
        dataset,
        opened[-1],
        data_dir,
        memory,
        image_size=image_size,
        split_at=split_at,
        training=True,
        others=opened[:-1],
    )
    *fronts, back = [checkpoint.with_dataset(set_) for checkpoint in opened]
    sweep = Sweep.of(fronts, back, cuts, settings, set_, where, save)
    if dry_run:
        if is_first():
            print(json.dumps(sweep.json()), file=stdout())
        return
    with processes(where) as ranks:
        if ranks.rank:
            options.take_part(sweep.rows(set_, where, ranks))
            return
        with sweep.unfinished(path, set_, resume) as unfinished:
            rows = sweep.rows(set_, where, ranks, unfinished, progress)
            kept = save is not None
            options.write(rows, tables.StitchingRow, path, table_format, byproduct=kept)
