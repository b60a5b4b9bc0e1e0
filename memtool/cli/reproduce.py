"""memtool reproduce"""

import os
import shlex
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated

import typer

from memtool import MemtoolError
from memtool.cli import app, inputs, main, options
from memtool.cli.console import logger, progress
from memtool.device import processors
from memtool.errors import printable
from memtool.figures.options import SUPPLEMENTED
from memtool.reproduction import Step, Study, chosen_recipe
from memtool.reproduction.recipes import MOST_EPOCHS, MOST_SEEDS
from memtool.tables import stdout

MOST_JOBS = 8  # by default, since a step takes some 400 MB


def _are_on_a_gpu(devices: Iterable[str]) -> bool:
    """Whether steps on these devices compute on a GPU: several would share its memory, and be no
    faster together. Of a device that is not available, the step is to tell."""
    from memtool.device import choose

    for name in devices:
        with suppress(MemtoolError):
            if choose(name).type != "cpu":
                return True
    return False


def _percent(typed: list[str] | None, option: str) -> list[float] | None:
    """Noise ratios in percent; None if none were typed."""
    return [100 * one for one in options.ratios(typed or [], option)] or None


def _option(name: str, metavar: str, help: str) -> object:
    return typer.Option(name, metavar=metavar, help=help)


def _study(name: str) -> Study:
    if name not in set(Study):
        raise typer.BadParameter(
            f"no study {name!r} (there are {', '.join(Study)}); of any data set with any network: "
            "--data DATASET --model SPEC"
        )
    return Study(name)


@app.command()
def reproduce(
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Folder for labels, checkpoints, tables and figures",
        ),
    ],
    study: Annotated[
        Study | None,
        typer.Argument(
            metavar="[STUDY]",
            parser=_study,
            autocompletion=lambda: list(Study),
            help="digits, minutes on a laptop; cifar10, by ResNet-18, or svhn, by a CNN, hours on "
            "a GPU; if left out, --data and --model say what",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        _option(
            "--data",
            "DATASET",
            f"{options.DATASETS}, with options as in folder:PATH?image_size=224, instead of the "
            "study's",
        ),
    ] = None,
    data_dir: options.DataDir = None,
    model: Annotated[
        str | None,
        _option("--model", "SPEC", "Model spec, as in memtool train, instead of the study's"),
    ] = None,
    small: Annotated[
        bool,
        typer.Option(
            "--small",
            help="For two processor cores: noise ratios 0, 25 and 50 %, 5,000 training images, "
            "2,000 test images in CKA, networks with a width of 16, the blocks alone of ResNet-18, "
            "34 and 50",
        ),
    ] = False,
    ratios: Annotated[
        list[str] | None,
        _option("--ratios", "RATIOS", "Noise ratios, in [0, 1] or in percent; 0 is always there"),
    ] = None,
    supplement: Annotated[
        list[str] | None,
        _option(
            "--supplement",
            "RATIOS",
            "Those of them whose stitched models are compared with the clean one, layer by layer; "
            f"by default {SUPPLEMENTED}, evenly chosen",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            metavar="N",
            min=1,
            max=MOST_SEEDS,
            help="Number of seeds; with several, figures show mean and spread",
        ),
    ] = 1,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", metavar="N", min=1, max=MOST_EPOCHS, help="Number of epochs"),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(
            "--save-every",
            metavar="N",
            min=1,
            help="Compare the checkpoints of every N-th epoch, and of the last one",
            show_default="at most 25 of them",
        ),
    ] = None,
    save_at: Annotated[
        str | None,
        _option("--save-at", "EPOCHS", "Compare those of these epochs instead, as in 1,2,4,8"),
    ] = None,
    samples_train: Annotated[
        int | None,
        typer.Option(
            "--samples-train",
            metavar="N",
            min=1,
            help="Take at most N of the training images, every class in proportion",
        ),
    ] = None,
    samples: options.Samples = None,
    layers: Annotated[
        str | None, _option("--layers", "PATTERNS", "Layers that are compared, as in memtool cka")
    ] = None,
    cuts: Annotated[
        str | None, _option("--cuts", "PATTERNS", "Where to cut, as in memtool stitch --at")
    ] = None,
    train: Annotated[
        str | None,
        _option("--train", "OPTIONS", "Further options of memtool train: '--augment crop-flip'"),
    ] = None,
    cka: Annotated[
        str | None,
        _option(
            "--cka",
            "OPTIONS",
            "Those of memtool cka, instead of the study's own, such as '--estimator exact'",
        ),
    ] = None,
    stitch: Annotated[
        str | None, _option("--stitch", "OPTIONS", "Further ones of memtool stitch")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "-j",
            "--jobs",
            metavar="N",
            min=1,
            help="Number of steps to run at the same time; by default one per processor core, "
            f"at most {MOST_JOBS}, or a single one where there is a GPU",
        ),
    ] = None,
    makefile: Annotated[
        bool, typer.Option("--makefile", help="Print the steps as a Makefile, and run none")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands that would run, and run none")
    ] = False,
    table_format: options.StdoutFormat = None,
    quiet: options.Quiet = False,
) -> None:
    """Reproduce the paper: noise, training, CKA, stitching

    Trains a network for each noise ratio, and a second clean one; compares their checkpoints and
    stitches them. Writes Figures 1, 2 and 3 of the paper and its supplement, with their values, to
    DIR, and prints a table of the findings, which findings.csv holds too: each claim of the paper
    with the number that decides it, and whether it holds. All choices are in reproduction.json,
    what each step took is in steps.csv, and report.html shows everything on one page. Steps whose
    output exists, by the same command, and is not older than their inputs are skipped: whoever
    stops it may start it again.

    \b
    Examples:
      memtool reproduce digits -o out
      memtool reproduce digits -o out --seeds 3 -j 4
      memtool reproduce cifar10 --data folder:cifar --small -o small
      memtool reproduce --data folder:photos --model resnet50 -o photos
      memtool reproduce cifar10 -o cifar10 --makefile > Makefile && make -j 2
    """
    from memtool import tables
    from memtool.figures import check_settings
    from memtool.files import check_writable, claimed
    from memtool.reproduction import (
        TRIED,
        Record,
        adopt_trained,
        check_inputs,
        check_unrecorded,
        open_server,
        pending,
        rehearse,
        run_steps,
        spelled_as_before,
        steps_for,
        to_makefile,
        workers,
        write_choices,
    )

    _check_folder(output)
    for option, typed in (("--layers", layers), ("--cuts", cuts)):
        options.comma_separated([] if typed is None else [typed], option)
    elsewhere = data_dir if str(data_dir) != os.environ.get("MEMTOOL_DATA") else None
    if data_dir:
        os.environ["MEMTOOL_DATA"] = str(data_dir)
    recipe = chosen_recipe(
        study=study,
        data=dataset,
        model=model,
        small=small,
        samples_train=samples_train,
        samples=samples,
        save_every=save_every,
        saved=options.epochs(save_at, "--save-at") if save_at is not None else None,
        ratios=_percent(ratios, "--ratios"),
        supplement=_percent(supplement, "--supplement"),
        seeds=seeds,
        epochs=epochs,
        layers=layers,
        cuts=cuts,
        train=train,
        cka=cka,
        stitch=stitch,
    )
    recipe = spelled_as_before(recipe, output / "reproduction.json")
    if makefile:
        print(to_makefile(recipe, output, study, elsewhere), end="", file=stdout())
        return
    steps = steps_for(recipe, output)
    check_inputs(recipe, steps, lambda spec: inputs.load_data(spec, data_dir, options.MEMORY))
    if dry_run:
        _print_commands(pending(steps, Record(output / "steps.csv").commands), elsewhere)
        return
    check_writable(output / "steps.csv")
    with claimed(output / "steps.csv"):  # one process at a time
        record = Record(output / "steps.csv")
        at_once = steps_at_once = jobs or min(processors(), MOST_JOBS)
        tried = [step for step in steps if step.name in TRIED]
        if not recipe.is_tried and not all(step.is_done(record.commands) for step in tried):
            rehearse(recipe, output, main)
        check_unrecorded(steps, record.commands, main)
        adopt_trained(steps, record, main)
        write_choices(output / "reproduction.json", {"study": study, **recipe.json()})
        done = len(steps) - sum(1 for _ in pending(steps, record.commands))
        is_done = done == len(steps)
        if not is_done:
            check_settings()
            open_server(main)
        # Imported meanwhile: matplotlib, which only the report takes here.
        from memtool.reproduction import read_results, write_report

        if at_once > 1 and not jobs and not is_done:
            devices = recipe.devices(os.environ.get("MEMTOOL_DEVICE") or "auto")
            with workers(1) as pool:  # where torch is
                steps_at_once = 1 if pool.submit(_are_on_a_gpu, devices).result() else at_once

        with progress(f"reproducing {recipe.data}", len(steps)) as advance:
            advance(done)
            for result in run_steps(steps, steps_at_once, main, record):
                if result.seconds is not None:
                    advance(description=result.step.name)
                    logger.info(f"{result.step.name}: {result.seconds:.1f} s")
                for warning in result.warnings:
                    logger.warning(f"{result.step.name}: {warning}")
        results = read_results(output)
        for path, chosen in ((output / "findings.csv", None), (None, table_format)):
            options.write(results.findings, tables.FindingRow, path, chosen)
        with nullcontext() if is_done else workers(at_once) as pool:
            logger.info(str(write_report(results, pool.map if pool else map)))


def _check_folder(output: Path) -> None:
    """Raise a usage error for a name that the commands of steps would read as something else."""
    for is_misread, told in (
        (str(output).startswith("-"), "would be taken for an option"),
        ("{ratio}" in str(output), "{ratio} would become the noise ratio"),
    ):
        if is_misread:
            raise typer.BadParameter(
                f"{output}: {told}; choose another name", param_hint="--output"
            )


def _print_commands(steps: Iterable[Step], data_dir: Path | None) -> None:
    """Print the commands, or none: raise MemtoolError where a word of one, such as a path, has
    characters that a terminal would obey."""
    where = f"MEMTOOL_DATA={shlex.quote(str(data_dir))} " if data_dir else ""
    commands = [f"{where}{step.command}" for step in steps]
    for command in commands:
        if printable(command) != command:
            raise MemtoolError(f"{command}: rename what has control characters")
    for command in commands:
        print(command, file=stdout())
