"""memtool reproduce"""

import os
from pathlib import Path
from typing import Annotated

import typer

from memtool.cli import app, main, options
from memtool.cli.console import WARNING, logger, progress
from memtool.reproduction.recipes import Study

MOST_JOBS = 8  # by default: a step takes some 400 MB


@app.command()
def reproduce(
    study: Annotated[
        Study,
        typer.Argument(
            metavar="STUDY", help="digits: minutes on a laptop's processor", show_default=False
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
        typer.Option("--seeds", metavar="N", min=1, help="Seeds; figures show mean and spread"),
    ] = 1,
    jobs: Annotated[
        int | None,
        typer.Option(
            "-j",
            "--jobs",
            metavar="N",
            min=1,
            help="Steps at once; else one a processor core",
            show_default=False,
        ),
    ] = None,
    makefile: Annotated[
        bool, typer.Option("--makefile", help="Print the steps as a Makefile, and do nothing")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands still to run, and do nothing")
    ] = False,
    table_format: options.TableFormat = None,
    quiet: options.Quiet = False,
) -> None:
    """Reproduce the paper: noise, training, CKA, stitching

    Figures 1, 2 and 3 and their tables are in DIR at the end, and a table of the findings is
    printed. Steps whose output is there and newer than their inputs are skipped.

    \b
    Examples:
      memtool reproduce digits -o out
      memtool reproduce digits -o out --seeds 3 -j 4
      memtool reproduce digits -o out --makefile > Makefile && make -j 2
    """
    from memtool import tables
    from memtool.files import check_writable
    from memtool.reproduction import findings
    from memtool.reproduction import steps as paper

    steps = paper.steps(study, output, seeds)
    if makefile:
        arguments = ["reproduce", str(study), "-o", str(output), "--seeds", str(seeds), "-q"]
        print(paper.makefile(steps, arguments), end="")
        return
    if dry_run:
        for step in steps:
            if not step.is_done():
                print(step.command())
        return
    check_writable(output / ".probe")
    with progress(f"reproducing {study}", len(steps)) as advance:
        for done in paper.run(steps, jobs or min(os.cpu_count() or 1, MOST_JOBS), main):
            advance(description=done.step.name)
            if done.seconds is not None:
                logger.info(f"{done.step.name}: {done.seconds:.1f} s")
            for warning in done.warnings:
                logger.warning(f"{done.step.name}: {warning.removeprefix(WARNING)}")
    read = {kind: tables.read(output / f"{stem}.csv") for kind, stem in paper.FIGURES.items()}
    with tables.writer(tables.FindingRow, None, table_format) as write:
        for row in findings.findings(**read):
            write(row)
    for stem in paper.FIGURES.values():
        logger.info(f"{output / stem}.pdf")
