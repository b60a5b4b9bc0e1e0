"""memtool stitch"""

from pathlib import Path
from typing import Annotated

import typer

from memtool.choices import Start
from memtool.cli import app, options
from memtool.cli.console import Console


@app.command()
def stitch(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="FRONT... BACK",
            help="Checkpoints that give their fronts, and the last one its back",
            show_default=False,
        ),
    ],
    at: Annotated[
        list[str],
        typer.Option(
            "--at",
            metavar="CUTS",
            help="Globs on layer names, or FRONT_LAYER=BACK_LAYER; repeat it or separate them by "
            "commas; 'all' is every cut (memtool info --layers FILE lists them)",
        ),
    ] = ["all"],  # noqa: B006 (typer copies it)
    both: Annotated[
        bool, typer.Option("--both", help="Also the reverse: the front of BACK, the back of FRONT")
    ] = False,
    control: Annotated[
        bool, typer.Option("--control", help="Also the control: each FRONT with its own back")
    ] = False,
    start: Annotated[
        Start,
        typer.Option(
            "--init",
            metavar="START",
            help="Start of the stitching layer: lstsq (least squares), identity or random",
        ),
    ] = Start.lstsq,
    epochs: Annotated[
        int,
        typer.Option("--epochs", metavar="N", min=0, help="Epochs of training; 0 leaves the start"),
    ] = 5,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", metavar="RATE", min=0, help="For Adam")
    ] = 2e-3,
    batch_size: options.BatchSize = 128,
    seed: options.Seed = 0,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="DIR",
            help="Keep the stitched models, as DIR/FRONT--CUT--BACK.safetensors",
            show_default=False,
        ),
    ] = None,
    model: options.Model = None,
    model_back: Annotated[
        str | None,
        typer.Option(
            "--model-back",
            metavar="SPEC",
            help="What model BACK is of, if another one",
            show_default=False,
        ),
    ] = None,
    trust: options.Trust = False,
    dataset: options.Data = None,
    data_dir: options.DataDir = None,
    image_size: options.ImageSize = None,
    split_at: options.SplitAt = None,
    output: options.Output = None,
    table_format: options.TableFormat = None,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Stitch the front of one network to the back of another

    Between them goes a trainable 1x1 convolution or linear layer; it alone is trained, on the true
    labels of the training images, and the whole is tested. Prints one row for each cut. A stitched
    model is a checkpoint that every command takes.

    \b
    Examples:
      memtool stitch runs/r50.safetensors runs/r0.safetensors --at all
      memtool stitch runs/r*.safetensors runs/r0.safetensors --at 'block?' \\
          --both --control -o stitching.csv
    """
    import json
    from dataclasses import asdict

    from memtool import sweep, table
    from memtool.device import choose
    from memtool.files import check_writable
    from memtool.train import Optimizer, Schedule, TrainConfig

    if len(checkpoints) < 2:
        raise typer.BadParameter("name a front and a back", param_hint="FRONT")
    path = options.output_path(output)
    if path:
        table.format_of(path, table_format)
        check_writable(path)
    where = choose(device)
    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        optimizer=Optimizer.adam,
        learning_rate=learning_rate,
        weight_decay=0.0,
        schedule=Schedule.constant,
        warmup=0.0,
        seed=seed,
    )
    console = Console(quiet)
    opened = options.open_checkpoints(checkpoints, console, model, model_back, trust)
    set_ = options.load_dataset(
        dataset,
        opened[-1],
        data_dir,
        console,
        image_size=image_size,
        split_at=split_at,
        training=True,
    )
    *fronts, back = [checkpoint.on(set_) for checkpoint in opened]
    directions = [
        sweep.Direction.forward,
        *([sweep.Direction.reverse] if both else []),
        *([sweep.Direction.control] if control else []),
    ]
    cuts = sweep.all_cuts(fronts, back, options.comma_separated(at))
    if save:
        sweep.check_folder(save, back.path, cuts, directions)
    if dry_run:
        named = {
            str(path): [f"{ours.name}={theirs.name}" for ours, theirs in own]
            for path, own in cuts.items()
        }
        settings = {"back": str(back.path), "cuts": named, "start": start, **asdict(config)}
        print(json.dumps(settings))
        return
    total = len(directions) * sum(map(len, cuts.values()))
    with (
        table.writer(table.STITCHING, path, table_format) as write,
        console.progress("stitching", total) as advance,
    ):
        examples = sweep.Examples.of(set_, where)
        for row in sweep.sweep(fronts, back, cuts, directions, examples, start, config, save):
            write(row)
            advance(description=f"{row['direction']} {row['front_layer']}")
