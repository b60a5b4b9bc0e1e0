"""Style files of matplotlib, by which a figure takes the look of a journal or of a thesis."""

import logging
from pathlib import Path
from typing import Any

from memtool import MemtoolError
from memtool.contents import check_regular
from memtool.errors import one_line

Parameters = dict[Any, Any]  # matplotlib's rcParams; its stubs want literal keys
MOST_VALUES = 50  # of a parameter: matplotlib looks for each font of a list for some 30 ms
# Names in tables are anybody's: they are shown as they are, and never read by LaTeX. A distiller is
# another program, and the fonts that every PDF reader has lack letters.
REFUSED = (
    *("text.usetex", "text.parse_math", "backend", "interactive", "toolbar"),
    *("ps.usedistiller", "pdf.use14corefonts"),
)


def read_style(path: Path) -> Parameters:
    """The parameters in a style file (FILE.mplstyle, with a line `lines.linewidth: 2` for each).

    matplotlib skips what it cannot read; here that is an error. Raises MemtoolError, with the line,
    for a file that cannot be read, a parameter or value that matplotlib does not know, and
    parameters that a figure of memtool may not set.
    """
    check_regular(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        names = [line.partition("#")[0].partition(":")[0].strip() for line in lines]
        # Before matplotlib reads them: to judge a distiller, it runs that.
        if refused := [name for name in REFUSED if name in names]:
            raise MemtoolError(f"{path}: a style may not set {refused[0]}; leave that line out")
        found, complaints = _read(path)
    except (OSError, ValueError) as error:  # quotes that do not end are a ValueError
        raise MemtoolError(f"{path}: cannot be read as a style: {one_line(error)}") from error
    if complaints:
        raise MemtoolError(f"{path}: {complaints[0].strip().splitlines()[0]}")
    for name, value in found.items():
        if isinstance(value, list | tuple) and len(value) > MOST_VALUES:
            raise MemtoolError(f"{path}: {name} has {len(value)} values, more than {MOST_VALUES}")
    return found


def _read(path: Path) -> tuple[Parameters, list[str]]:
    """The parameters, and what matplotlib has to say about the file."""
    import matplotlib  # here, since the command line imports this module for its help

    complaints: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: complaints.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("matplotlib")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        found = matplotlib.rc_params_from_file(path, use_default_template=False)
        return dict(found), complaints
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
