"""memtool reproduce"""

import os
from pathlib import Path
from typing import Annotated

import typer

from memtool.cli import app, main, options
from memtool.cli.console import logger, progress
from memtool.reproduction import FIGURES, RECIPES, Study

MOST_JOBS = 8  # by default, since a step takes some 400 MB


@app.command()
def reproduce(
    study: Annotated[
        Study,
        typer.Argument(
            metavar="STUDY",
            help="digits, which takes minutes on a laptop's processor",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Folder for labels, checkpoints, tables and figures",
            show_default=False,
        ),
    ],
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            metavar="N",
            min=1,
            help="Number of seeds; with several, figures show mean and spread",
        ),
    ] = 1,
    jobs: Annotated[
        int | None,
        typer.Option(
            "-j",
            "--jobs",
            metavar="N",
            min=1,
            help="Number of steps to run at the same time; by default one per processor core, "
            f"at most {MOST_JOBS}",
            show_default=False,
        ),
    ] = None,
    makefile: Annotated[
        bool, typer.Option("--makefile", help="Print the steps as a Makefile, and run none")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands that would run, and run none")
    ] = False,
    table_format: options.TableFormat = None,
    quiet: options.Quiet = False,
) -> None:
    """Reproduce the paper: noise, training, CKA, stitching

    Writes Figures 1, 2 and 3 of the paper, a figure of the training, and their tables to DIR, and
    prints a table of the findings, which findings.csv holds too: each claim of the paper with the
    number that decides it, and whether it holds. Steps whose output exists and is not older than
    their inputs are skipped.

    \b
    Examples:
      memtool reproduce digits -o out
      memtool reproduce digits -o out --seeds 3 -j 4
      memtool reproduce digits -o out --makefile > Makefile && make -j 2
    """
    from memtool import tables
    from memtool.files import check_writable
    from memtool.reproduction import measure_findings, run_steps, steps_for, to_makefile

    steps = steps_for(RECIPES[study], output, seeds)
    if makefile:
        arguments = ["reproduce", str(study), "-o", str(output), "--seeds", str(seeds), "-q"]
        print(to_makefile(steps, arguments), end="")
        return
    if dry_run:
        for step in steps:
            if not step.is_done():
                print(step.command())
        return
    check_writable(output / ".probe")
    with progress(f"reproducing {study}", len(steps)) as advance:
        for outcome in run_steps(steps, jobs or min(os.cpu_count() or 1, MOST_JOBS), main):
            advance(description=outcome.step.name)
            if outcome.seconds is not None:
                logger.info(f"{outcome.step.name}: {outcome.seconds:.1f} s")
            for warning in outcome.warnings:
                logger.warning(f"{outcome.step.name}: {warning}")
    read = {kind: tables.read(output / f"{stem}.csv") for kind, stem in FIGURES.items()}
    cka = [*read["convergence"], *read["divergence"]]
    findings = measure_findings(read["training"], cka, read["stitching"])
    for path, chosen in ((output / "findings.csv", None), (None, table_format)):
        with tables.writer(tables.FindingRow, path, chosen) as write:
            for row in findings:
                write(row)
    for stem in FIGURES.values():
        logger.info(f"{output / stem}.pdf")
