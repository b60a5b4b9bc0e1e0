"""memtool train"""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from memtool import MemtoolError
from memtool.cli import app, options
from memtool.cli.console import progress
from memtool.training import TrainConfig


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
            help="Checkpoint of the final model; its name ends in .safetensors",
            show_default=False,
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATASET",
            help=f"{options.DATASETS}; by default the one that the labels were made for",
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
            help="Given labels, a file from make-noisy; by default the true labels",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option("--epochs", metavar="N", min=1, help="Number of epochs")
    ] = TrainConfig.epochs,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", metavar="N", min=2, help="Number of examples per batch"),
    ] = TrainConfig.batch_size,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--learning-rate", metavar="RATE", min=0, help="Peak of AdamW's learning rate"
        ),
    ] = TrainConfig.learning_rate,
    weight_decay: Annotated[
        float,
        typer.Option(
            "--weight-decay", metavar="DECAY", min=0, help="Decoupled weight decay of AdamW"
        ),
    ] = TrainConfig.weight_decay,
    warmup: Annotated[
        float,
        typer.Option(
            "--warmup",
            metavar="FRACTION",
            min=0,
            max=1,
            help="Fraction of the run over which the learning rate rises; after that it falls "
            "linearly to 0",
        ),
    ] = TrainConfig.warmup,
    seed: options.Seed = 0,
    save_every: Annotated[
        int | None,
        typer.Option(
            "--save-every",
            metavar="N",
            min=1,
            help="Also save a checkpoint every N epochs; with -o runs/r25.safetensors, that of "
            "epoch 8 is runs/r25/epoch-0008.safetensors",
            show_default=False,
        ),
    ] = None,
    save_at: Annotated[
        str,
        typer.Option(
            "--save-at",
            metavar="EPOCHS",
            help="Also save checkpoints after these epochs, as in 1,2,4,8; 0 is the initial model",
            show_default=False,
        ),
    ] = "",
    memory: options.Memory = "4GiB",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue a stopped run where it left off, if there is one"),
    ] = False,
    rows_to: Annotated[
        Path | None,
        typer.Option(
            "--table",
            metavar="FILE",
            help="Also write the rows to this file, once the run is complete",
            show_default=False,
        ),
    ] = None,
    table_format: options.TableFormat = None,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a classifier on given labels

    Prints one row per epoch: the loss, and the accuracy on the given labels, on the true labels,
    on the given labels of the mislabelled images alone (this measures memorization), and on the
    test images. Runs with the same seed start from the same initial weights, whatever their labels.

    \b
    Examples:
      memtool train --model digits-cnn --data digits -o runs/r0.safetensors
      memtool train --model digits-cnn --labels labels/r25.safetensors \\
          -o runs/r25.safetensors --save-every 1 --resume --table runs/r25.csv
    """
    import json

    from memtool import models, tables
    from memtool.data import LabelFile
    from memtool.device import choose
    from memtool.files import check_writable
    from memtool.training import Run

    epochs_to_save = _epochs_to_save(save_every, save_at, epochs)
    if dataset is None and labels is None:
        raise typer.BadParameter("pass --data, or --labels that know theirs", param_hint="--data")
    options.check_file(output)
    check_writable(output)
    rows_to = options.output_path(rows_to)  # rows go to stdout anyway
    if rows_to:
        tables.format_of(rows_to, None)
        check_writable(rows_to)
    spec = models.parse(model)
    given = LabelFile.load(labels) if labels else None
    named = dataset or (given.metadata["data"]["name"] if given else "")
    typed = options.dataset_spec(named, image_size, split_at)
    set_ = options.load_data(typed, data_dir, memory, training=True)
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
        epochs_to_save=epochs_to_save,
    )
    models.check_classifier(fitted, set_.image_shape, len(set_.classes))
    where = choose(device)
    for epoch in epochs_to_save:
        check_writable(run.epoch_path(epoch))
    if dry_run:
        print(json.dumps({"output": str(output), **run.metadata()}, sort_keys=True))
        return
    with ExitStack() as stack:
        # The bar comes first: on a terminal, the rows then stand above it.
        advance = stack.enter_context(progress(f"training {output}", epochs))
        targets = [(None, table_format), *([(rows_to, None)] if rows_to else [])]
        writers = [
            stack.enter_context(tables.writer(tables.TrainingRow, path, chosen, byproduct=True))
            for path, chosen in targets
        ]
        for row in run.train(where, resume):
            for write in writers:
                write(row)
            advance(description=f"loss {row['loss']:.3f} test {row['test_accuracy']:.3f}")
    run.finish()  # once the table is complete: a checkpoint says that the whole run is done


def _epochs_to_save(every: int | None, at: str, epochs: int) -> set[int]:
    """The epochs that --save-every and --save-at name; a usage error for one after the last."""
    saved = {*options.epochs(at), *(range(every, epochs + 1, every) if every else ())}
    if saved and max(saved) > epochs:
        raise typer.BadParameter(f"the run has {epochs} epochs", param_hint="--save-at")
    return saved
