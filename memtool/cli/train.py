"""memtool train"""

from pathlib import Path
from typing import Annotated

import typer

from memtool import MemtoolError
from memtool.cli import app, options
from memtool.cli.console import progress


@app.command()
def train(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="SPEC",
            help="digits-cnn, cnn, resnet18, resnet34, resnet50, torchvision:NAME, timm:NAME, "
            "FILE.py:FACTORY or FILE.json, each with options as in resnet18?width=16",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Checkpoint of the final model, .safetensors",
            show_default=False,
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATASET",
            help=f"{options.DATASETS}; else the one that the labels were made for",
            show_default=False,
        ),
    ] = None,
    data_dir: options.DataDir = None,
    image_size: options.ImageSize = None,
    split_at: options.SplitAt = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="Given labels, from make-noisy; else the true ones",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", min=1, help="Epochs")] = 20,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", metavar="N", min=2, help="Examples in a batch"),
    ] = 64,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", metavar="RATE", min=0, help="Peak, for AdamW")
    ] = 3e-3,
    weight_decay: Annotated[
        float, typer.Option("--weight-decay", metavar="DECAY", min=0, help="Decoupled, for AdamW")
    ] = 0.01,
    warmup: Annotated[
        float,
        typer.Option(
            "--warmup",
            metavar="FRACTION",
            min=0,
            max=1,
            help="Part of the run over which the learning rate rises; then it falls to 0",
        ),
    ] = 0.1,
    seed: options.Seed = 0,
    save_every: Annotated[
        int | None,
        typer.Option(
            "--save-every",
            metavar="N",
            min=1,
            help="Keep every N-th epoch's checkpoint: for -o runs/r25.safetensors, "
            "runs/r25/epoch-0008.safetensors",
            show_default=False,
        ),
    ] = None,
    save_at: Annotated[
        str,
        typer.Option(
            "--save-at",
            metavar="EPOCHS",
            help="Keep these epochs' checkpoints, as in 1,2,4,8; 0 is the start",
            show_default=False,
        ),
    ] = "",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from where a stopped run got to, if any"),
    ] = False,
    rows_to: Annotated[
        Path | None,
        typer.Option(
            "--table",
            metavar="FILE",
            help="Write the rows there too, whole, once the run is done",
            show_default=False,
        ),
    ] = None,
    table_format: options.TableFormat = None,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a classifier on given labels

    Prints one row an epoch: loss, accuracy on the given labels, on the true labels, on the given
    labels of the mislabelled images alone (that is memorization), and on the test images. One seed
    gives the same initial weights whatever the labels.

    \b
    Examples:
      memtool train --model digits-cnn --data digits -o runs/r0.safetensors
      memtool train --model digits-cnn --labels labels/r25.safetensors \\
          -o runs/r25.safetensors --save-every 1 --resume --table runs/r25.csv
    """
    import json
    from contextlib import ExitStack

    from memtool import tables
    from memtool.data import LabelFile
    from memtool.device import choose
    from memtool.files import check_writable
    from memtool.models import sources as models
    from memtool.training.loop import TrainConfig
    from memtool.training.run import Run

    saved = set(options.epochs(save_at))
    if save_every:
        saved |= set(range(save_every, epochs + 1, save_every))
    if saved and max(saved) > epochs:
        raise typer.BadParameter(f"the run has {epochs} epochs", param_hint="--save-at")
    if dataset is None and labels is None:
        raise typer.BadParameter("pass --data, or --labels that know theirs", param_hint="--data")
    options.check_file(output)
    check_writable(output)
    rows_to = options.output_path(rows_to)  # stdout has them anyway
    if rows_to:
        tables.format_of(rows_to, None)
        check_writable(rows_to)
    spec = models.parse(model)
    given = LabelFile.load(labels) if labels else None
    named = dataset or (given.metadata["data"]["name"] if given else "")
    typed = options.dataset_spec(named, image_size, split_at)
    set_ = options.load_data(typed, data_dir, training=True)
    if given and labels:
        given.check(labels, set_)
    fitted = models.complete_for_dataset(spec, set_.image_shape, len(set_.classes))
    if fitted.options.get("num_classes", len(set_.classes)) != len(set_.classes):
        raise MemtoolError(
            f"model {str(spec)!r} has {fitted.options['num_classes']} classes, "
            f"{set_.name} has {len(set_.classes)}; leave out num_classes"
        )
    run = Run(
        output=output,
        spec=fitted,
        dataset=set_,
        labels=given or LabelFile.true_labels(set_),
        config=TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup=warmup,
            seed=seed,
        ),
        epochs_to_save=saved,
    )
    where = choose(device)
    for epoch in saved:
        check_writable(run.epoch_path(epoch))
    if dry_run:
        print(json.dumps({"output": str(output), **run.metadata({"epoch": 0})}, sort_keys=True))
        return
    with ExitStack() as stack:
        # The bar first: on a terminal, the rows then stand above it.
        advance = stack.enter_context(progress(f"training {output}", epochs))
        writers = [stack.enter_context(tables.writer(tables.TrainingRow, None, table_format))]
        if rows_to:
            writers.append(stack.enter_context(tables.writer(tables.TrainingRow, rows_to, None)))
        for row in run.train(where, resume):
            for write in writers:
                write(row)
            advance(description=f"loss {row['loss']:.3f} test {row['test_accuracy']:.3f}")
    run.finish()
