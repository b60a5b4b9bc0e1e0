"""memtool make-noisy"""

from pathlib import Path
from typing import Annotated

import typer

from memtool import MemtoolError
from memtool.cli import app, options
from memtool.cli.console import logger
from memtool.data.noise import Matrix, NoiseKind


@app.command("make-noisy")
def make_noisy(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="digits, cifar10, cifar100, svhn, mnist, fashion-mnist, folder:PATH, FILE.npz or "
            "FILE.safetensors",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Label file; with several ratios, {ratio} in its name stands for the percentage",
            show_default=False,
        ),
    ],
    ratio: Annotated[
        list[str],
        typer.Option(
            "-r",
            "--ratio",
            metavar="RATIOS",
            help="Noise ratio in [0, 1] or in percent; repeat it or separate them by commas",
            show_default=False,
        ),
    ],
    kind: Annotated[
        NoiseKind,
        typer.Option(
            "--kind",
            metavar="KIND",
            help="uniform (any class), symmetric (another class), pairflip (the next class) or "
            "matrix (with --matrix)",
        ),
    ] = NoiseKind.uniform,
    matrix: Annotated[
        Path | None,
        typer.Option(
            "--matrix",
            metavar="FILE",
            help="Text file of T[true, given], a row a line, rows summing to 1; implies "
            "--kind matrix",
            show_default=False,
        ),
    ] = None,
    data_dir: options.DataDir = None,
    image_size: options.ImageSize = None,
    split_at: options.SplitAt = None,
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Replace part of a data set's training labels by random ones

    Exactly round(RATIO * n) training examples have their label redrawn. One seed gives nested
    sets: what is mislabelled at 5 % is so at 10 %, with the same given label.

    \b
    Examples:
      memtool make-noisy digits -r 25% -o labels/r25.safetensors
      memtool make-noisy digits -r 0,5%,50% -o 'labels/r{ratio}.safetensors'
    """
    import json

    from memtool.data import noise
    from memtool.data.labels import LabelFile
    from memtool.files import check_writable

    ratios = [options.fraction(text) for text in options.comma_separated(ratio)]
    if not ratios:
        raise typer.BadParameter("no ratio given", param_hint="-r")
    if (matrix is None) == (kind is NoiseKind.matrix) and kind is not NoiseKind.uniform:
        raise typer.BadParameter("kind matrix and --matrix FILE go together", param_hint="--kind")
    if len(ratios) > 1 and "{ratio}" not in str(output):
        raise typer.BadParameter(
            "several ratios need {ratio} in the name, as in 'r{ratio}.safetensors'", param_hint="-o"
        )
    options.check_file(output)
    paths = [Path(str(output).replace("{ratio}", f"{100 * value:.10g}")) for value in ratios]
    spec = options.dataset_spec(dataset, image_size, split_at)
    set_ = options.load_data(spec, data_dir, training=True)
    classes = len(set_.classes)
    transition = (
        noise.transition_matrix(kind, classes) if matrix is None else _read(matrix, classes)
    )
    for path in paths:
        check_writable(path)
    for path, value in zip(paths, ratios, strict=True):
        given = noise.redraw(set_.train.labels, transition, value, seed)
        description = {
            "ratio": value,
            "kind": str(kind if matrix is None else NoiseKind.matrix),
            "seed": seed,
            **({"matrix": transition.tolist()} if matrix else {}),
        }
        labels = LabelFile(
            given, set_.train.labels, {"data": set_.metadata(), "noise": description}
        )
        counts = f"{labels.mislabelled.sum()} of {len(given)} mislabelled"
        if dry_run:
            print(json.dumps({"output": str(path), "data": set_.name, **description}))
            continue
        labels.save(path)
        logger.info(f"{path}: {round(value * len(given))} redrawn, {counts}")


def _read(path: Path, classes: int) -> Matrix:
    """A transition matrix from text: numbers separated by commas or spaces, a row a line."""
    import numpy as np

    from memtool.data import noise

    try:
        text = path.read_text(encoding="utf-8").replace(",", " ")
        if not text.strip():
            raise ValueError("it is empty")
        matrix = np.loadtxt(text.splitlines(), ndmin=2)
        noise.check_transition_matrix(matrix, classes)
    except OSError as error:
        raise MemtoolError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, MemtoolError) as error:
        raise MemtoolError(f"{path}: not a transition matrix: {error}") from error
    return matrix
