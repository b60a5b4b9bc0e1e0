"""memtool report"""

from pathlib import Path
from typing import Annotated

import typer

from memtool.cli import app, options
from memtool.cli.console import logger


@app.command()
def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder of a reproduction"),
    ],
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write one HTML page of a reproduction

    Writes DIR/report.html: what was run at what scale, which claims of the paper hold in it and
    why, the figures and how to read them, all settings, versions and commands, and what each step
    took. The page is one file without scripts that needs nothing else; it is made to be mailed,
    printed and read on a phone. Findings and figures are made anew from the tables in DIR; what is
    not there is left out, with the reason.

    \b
    Examples:
      memtool report out
      memtool report experiments/cifar10 -q
    """
    from memtool.reproduction import read_results, write_report

    logger.info(str(write_report(read_results(folder))))
