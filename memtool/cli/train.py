"""memtool train"""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from memtool import MemtoolError
from memtool.cli import app, inputs, options
from memtool.cli.console import progress
from memtool.device import Precision
from memtool.errors import counted
from memtool.models import OURS
from memtool.tables import stdout
from memtool.tables.schema import LARGEST
from memtool.training.defaults import config_for, told
from memtool.training.settings import Augment, Optimizer, Schedule, TrainConfig


@app.command()
def train(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="SPEC",
            help=f"{', '.join(OURS)}, torchvision:NAME, timm:NAME, "
            "FILE.py:FACTORY or FILE.json, each with options as in resnet18?width=16",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Checkpoint of the final model; its name ends in .safetensors",
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATASET",
            help=f"{options.DATASETS}; by default the one that the labels were made for",
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
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            metavar="N",
            min=0,
            help="Number of epochs; 0 keeps the initial model",
            show_default=told("epochs"),
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=2,
            help="Number of examples per batch, of all processes together",
            show_default=told("batch_size"),
        ),
    ] = None,
    optimizer: Annotated[
        Optimizer | None,
        typer.Option(
            "--optimizer",
            metavar="OPTIMIZER",
            help="adamw, adam, or sgd with a Nesterov momentum of 0.9",
            show_default=told("optimizer"),
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            metavar="RATE",
            min=0,
            max=LARGEST,
            help="Peak of the learning rate",
            show_default=told("learning_rate"),
        ),
    ] = None,
    schedule: Annotated[
        Schedule | None,
        typer.Option(
            "--schedule",
            metavar="SCHEDULE",
            help="Learning rate after the warm-up: linear or cosine, both to 0; step, a tenth "
            "after half of it and a hundredth after three quarters; or constant",
            show_default=told("schedule"),
        ),
    ] = None,
    warmup: Annotated[
        float,
        typer.Option(
            "--warmup",
            metavar="FRACTION",
            min=0,
            max=1,
            help="Fraction of the run over which the learning rate rises to its peak",
        ),
    ] = TrainConfig.warmup,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            "--weight-decay",
            metavar="DECAY",
            min=0,
            max=LARGEST,
            help="Weight decay, decoupled with adamw, else an L2 penalty; that of normalization "
            "layers is 0",
            show_default=told("weight_decay"),
        ),
    ] = None,
    decay_norm: Annotated[
        bool,
        typer.Option(
            "--decay-norm", help="Decay the weights and biases of normalization layers too"
        ),
    ] = False,
    clip_norm: Annotated[
        float | None,
        typer.Option(
            "--clip-norm",
            metavar="NORM",
            min=0,
            max=LARGEST,
            help="Scale gradients of a larger norm down to it",
        ),
    ] = None,
    augment: Annotated[
        Augment,
        typer.Option(
            "--augment",
            metavar="KIND",
            help="none, or crop-flip: training images are shifted by up to an eighth of their "
            "sides, and half of them mirrored, anew in each epoch",
        ),
    ] = Augment.none,
    precision: Annotated[
        Precision | None,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            help="Precision of the forward passes: float32, tf32 (on CUDA) or bf16",
            show_default="bf16 on CUDA that has it, else float32",
        ),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Have torch.compile make the kernels")
    ] = False,
    sync_batch_norm: Annotated[
        bool,
        typer.Option(
            "--sync-batch-norm",
            help="Under torchrun, batch norm takes the statistics of the whole batch, not of each "
            "process's part",
        ),
    ] = False,
    evaluate_every: Annotated[
        int,
        typer.Option(
            "--evaluate-every",
            metavar="N",
            min=1,
            help="Evaluate, and print a row, after every N epochs, after the last one, and after "
            "those whose checkpoints are saved",
        ),
    ] = TrainConfig.evaluate_every,
    seed: options.Seed = 0,
    order_seed: Annotated[
        int | None,
        typer.Option(
            "--order-seed",
            metavar="N",
            min=0,
            max=options.LARGEST_SEED,
            help="Seed of the order of batches and of augmentation: with another one than --seed, "
            "equal initial weights are trained again, to see by how much two runs differ anyway",
            show_default="that of --seed",
        ),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(
            "--save-every",
            metavar="N",
            min=1,
            help="Also save a checkpoint every N epochs; with -o runs/r25.safetensors, that of "
            "epoch 8 is runs/r25/epoch-0008.safetensors",
        ),
    ] = None,
    save_at: Annotated[
        str,
        typer.Option(
            "--save-at",
            metavar="EPOCHS",
            help="Also save checkpoints after these epochs, as in 1,2,4,8; 0 is the initial model",
        ),
    ] = "",
    memory: options.Memory = options.MEMORY,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue a stopped run where it left off, if there is one; leave a finished one "
            "as it is",
        ),
    ] = False,
    rows_to: Annotated[
        Path | None,
        typer.Option(
            "--table",
            metavar="FILE",
            help="Also write the rows to this file, once the run is complete",
        ),
    ] = None,
    table_format: options.StdoutFormat = None,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a classifier on given labels

    Prints one row per epoch: loss and accuracy on the given labels, on the true labels, on either
    of the mislabelled images alone (on the given ones this measures memorization), on the other
    training images, and on the test images. Runs with the same seed start from the same initial
    weights, whatever their labels.

    \b
    Examples:
      memtool train --model digits-cnn --data digits -o runs/r0.safetensors
      memtool train --model digits-cnn --labels labels/r25.safetensors \\
          -o runs/r25.safetensors --save-every 1 --resume --table runs/r25.csv
      memtool train --model resnet18 --data cifar10 --augment crop-flip \\
          -o runs/r0.safetensors
      torchrun --nproc-per-node 2 -m memtool train --model resnet18 \\
          --data cifar10 -o runs/r0.safetensors
    """
    import json

    from memtool import models, tables
    from memtool.data import LabelFile, with_options
    from memtool.device import choose, has_bf16, processes
    from memtool.files import check_writable, claimed
    from memtool.training import Run

    if dataset is None and labels is None:
        raise typer.BadParameter("pass --data, or --labels that know theirs", param_hint="--data")
    options.check_file(output)
    check_writable(output)
    rows_to = options.checked_output(rows_to, None)  # rows go to stdout anyway
    spec = models.parse(model)
    where = choose(device)
    given = LabelFile.load(labels) if labels else None
    named = dataset or (given.metadata["data"]["name"] if given else "")
    typed = with_options(named, image_size=image_size, split_at=split_at)
    set_ = inputs.load_data(typed, data_dir, memory, training=True)
    if given and labels:
        given.check(labels, set_)
    config = config_for(
        spec.name,
        len(set_.train),
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        seed=seed,
        order_seed=order_seed if order_seed != seed else None,
        augment=augment,
        clip_norm=clip_norm,
        decay_norm=decay_norm,
        sync_batch_norm=sync_batch_norm,
        precision=precision or (Precision.bf16 if has_bf16(where) else Precision.float32),
        compile=compile,
        evaluate_every=evaluate_every,
    )
    epochs_to_save = _epochs_to_save(save_every, save_at, config.epochs)
    fitted = models.complete_for_dataset(spec, set_.image_shape, len(set_.classes))
    if fitted.options.get("num_classes", len(set_.classes)) != len(set_.classes):
        raise MemtoolError(
            f"model {str(spec)!r} has {fitted.options['num_classes']} classes, "
            f"{set_.name} has {len(set_.classes)}; leave out num_classes"
        )
    given = given or LabelFile.true_labels(set_)
    with processes(where) as together, ExitStack() as stack:
        if not together.rank and not dry_run:
            stack.enter_context(claimed(output))
        run = Run(output, fitted, set_, given, config, epochs_to_save, together)
        run.check(resume)
        if dry_run:
            if not together.rank:
                print(
                    json.dumps({"output": str(output), **run.metadata()}, sort_keys=True),
                    file=stdout(),
                )
            return
        if together.rank:
            options.take_part(run.train(where, resume))
            return
        with ExitStack() as shown:
            # The bar comes first: on a terminal, the rows then stand above it.
            advance = shown.enter_context(progress(f"training {output}", run.steps(config.epochs)))
            # What it refuses is told before a table begins.
            rows = run.train(where, resume, advance)
            targets = [(None, table_format), *([(rows_to, None)] if rows_to else [])]
            writers = [
                shown.enter_context(tables.writer(tables.TrainingRow, path, chosen, byproduct=True))
                for path, chosen in targets
            ]
            for row in rows:
                if row is None:  # an epoch that is not evaluated
                    continue
                for write in writers:
                    write(row)
                advance(0, f"loss {row['loss']:.3f} test {row['test_accuracy']:.3f}")
        # Once the table is complete: a checkpoint says that the whole run is done.
        run.finish(where)


def _epochs_to_save(every: int | None, at: str, epochs: int) -> set[int]:
    """The epochs that --save-every and --save-at name; a usage error for one after the last."""
    saved = {*options.epochs(at, "--save-at"), *(range(every, epochs + 1, every) if every else ())}
    if saved and max(saved) > epochs:
        raise typer.BadParameter(
            f"{max(saved)}: the run has {counted(epochs, 'epoch')}", param_hint="--save-at"
        )
    return saved
