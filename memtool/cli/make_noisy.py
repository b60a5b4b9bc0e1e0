"""memtool make-noisy"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memtool import MemtoolError
from memtool.cli import app, inputs, options
from memtool.cli.console import logger
from memtool.data import NoiseKind, with_options
from memtool.tables import stdout

if TYPE_CHECKING:
    from memtool.data import Matrix


@app.command("make-noisy")
def make_noisy(
    dataset: Annotated[
        str,
        typer.Argument(metavar="DATASET", help=options.DATASETS),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Label file; with several ratios, {ratio} in its name stands for the percentage",
        ),
    ],
    ratio: Annotated[
        list[str] | None,
        typer.Option(
            "-r",
            "--ratio",
            metavar="RATIOS",
            help="Noise ratio in [0, 1] or in percent; repeat it or separate them by commas",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE[:KEY]",
            help="Take labels that others made, in place of random ones: an array (.npy; one of "
            "several in .npz, .safetensors, .pt) or a column of a table (.csv, .tsv, .txt), one "
            "class for each training example, by its name or its number from 0",
        ),
    ] = None,
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
            help="T[true, given], an array (.npy) or a text file with one row per line, each row "
            "summing to 1; implies --kind matrix",
        ),
    ] = None,
    data_dir: options.DataDir = None,
    image_size: options.ImageSize = None,
    split_at: options.SplitAt = None,
    memory: options.Memory = options.MEMORY,
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Replace part of a data set's training labels

    Exactly round(RATIO * n) training examples have their label redrawn at random. One seed gives
    nested sets: what is mislabelled at 5 % is so at 10 %, with the same given label. With --from,
    the labels are those in a file.

    \b
    Examples:
      memtool make-noisy digits -r 25% -o labels/r25.safetensors
      memtool make-noisy digits -r 0,5%,50% -o 'labels/r{ratio}.safetensors'
      memtool make-noisy cifar10 --from CIFAR-10_human.pt:worse_label \\
          -o labels/worse.safetensors
    """
    import json

    from memtool.data import LabelFile, split_source
    from memtool.files import check_writable
    from memtool.tensors import find_replaced

    ratios = options.ratios(ratio or [], "-r")
    if source is not None and (ratio or matrix or kind is not NoiseKind.uniform):
        raise typer.BadParameter(
            "it takes the place of -r, --kind and --matrix", param_hint="--from"
        )
    if source is None and not ratios:
        raise typer.BadParameter("no ratio given, nor --from FILE", param_hint="-r")
    if matrix is not None and kind is NoiseKind.uniform:  # the default
        kind = NoiseKind.matrix
    if (matrix is None) == (kind is NoiseKind.matrix):
        raise typer.BadParameter("kind matrix and --matrix FILE go together", param_hint="--kind")
    if len(ratios) > 1 and "{ratio}" not in str(output):
        raise typer.BadParameter(
            "several ratios need {ratio} in the name, as in 'r{ratio}.safetensors'", param_hint="-o"
        )
    if source is not None and "{ratio}" in str(output):
        raise typer.BadParameter("--from gives labels without a {ratio}", param_hint="-o")
    options.check_file(output)
    paths = {Path(str(output).replace("{ratio}", f"{100 * one:.10g}")): one for one in ratios}
    for path in paths or [output]:
        check_writable(path)
        find_replaced(path, "labels", split_source(source)[0] if source else None)
    spec = with_options(dataset, image_size=image_size, split_at=split_at)
    set_ = inputs.load_data(spec, data_dir, memory, training=True)
    transition = _read_matrix(matrix, len(set_.classes)) if matrix else None
    if source is not None:
        made = {output: LabelFile.given_by(set_, source)}
    else:
        made = {
            path: LabelFile.noisy(set_, kind, value, seed, transition)
            for path, value in paths.items()
        }
    for path, labels in made.items():
        if dry_run:
            print(
                json.dumps({"output": str(path), "data": set_.name, **labels.metadata["noise"]}),
                file=stdout(),
            )
            continue
        labels.save(path)
        examples = len(labels.given)
        redrawn = (
            "" if source else f"{round(labels.metadata['noise']['ratio'] * examples)} redrawn, "
        )
        logger.info(f"{path}: {redrawn}{labels.mislabelled.sum()} of {examples} mislabelled")


def _read_matrix(path: Path, classes: int) -> "Matrix":
    """A transition matrix of so many classes from a NumPy array (.npy), or from a text file that
    has one row per line and numbers separated by commas or spaces. A note tells of rows that had to
    be rescaled to sum to 1. Raises MemtoolError for any other file."""
    from memtool.contents import check_regular
    from memtool.data import checked_transition_matrix

    check_regular(path)  # or what it says would be taken for a wrong matrix
    try:
        read = _read_array(path) if path.suffix.lower() == ".npy" else _read_numbers(path)
        matrix = checked_transition_matrix(read, classes)
    except OSError as error:
        raise MemtoolError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, EOFError, MemoryError, MemtoolError) as error:
        raise MemtoolError(f"{path}: not a transition matrix: {error}") from error
    if (rows := (matrix != read).any(axis=1)).any():
        logger.info(
            f"{path}: {rows.sum()} of its rows do not sum to 1, and were divided by their sum"
        )
    return matrix


def _read_array(path: Path) -> "Matrix":
    """Numbers of any type as float64. Raises OSError, or, for anything else, ValueError, EOFError
    or MemoryError."""
    import numpy as np

    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise ValueError("it is no array of numbers")
    return array.astype(np.float64)


def _read_numbers(path: Path) -> "Matrix":
    """Lines of as many numbers each. Raises OSError, or ValueError for anything else."""
    import numpy as np

    from memtool.contents import read_text

    text = read_text(path).replace(",", " ")
    if not text.strip():
        raise ValueError("it is empty")
    try:
        return np.loadtxt(text.splitlines(), ndmin=2)
    except ValueError as error:
        raise ValueError(
            "its lines should be rows of numbers alone, without a header or an index (pandas: "
            "to_csv(FILE, header=False, index=False))"
        ) from error
