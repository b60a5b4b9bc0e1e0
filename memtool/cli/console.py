"""What goes to stderr: notes, warnings and progress.

The library logs its notes (INFO) and warnings (WARNING) to the logger `memtool`; a command shows
them here, notes not with `-q`. A terminal gets bars with the time left; a log gets one line for
each note, and now and then one that says how far long work has got. Of the processes of a torchrun,
only rank 0 speaks.
"""

import logging
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic as clock
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from memtool.device import is_first
from memtool.errors import WARNING, printable
from memtool.progress import Advance, unseen
from memtool.tables import discard

LOG_EVERY = 30.0  # seconds between two lines of progress in a log

logger = logging.getLogger("memtool")


class _Stderr(Console):
    """Of rich's, but no work ends because nobody reads its notes, or no disk takes them."""

    @property
    def moves_cursor(self) -> bool:
        """Whether it is a terminal that does, whatever FORCE_COLOR says of a log."""
        return self.file.isatty() and not self.is_dumb_terminal

    def on_broken_pipe(self) -> None:
        self.quiet = True
        discard(sys.stderr)


stderr = _Stderr(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


class _Handler(logging.Handler):
    """Prints records; what was told before is not told again."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = "\n".join(map(printable, record.getMessage().strip().split("\n")))
        if text not in self._told:
            self._told.add(text)
            try:
                stderr.print(f"{WARNING}{text}" if record.levelno >= logging.WARNING else text)
            except OSError:  # a full disk, say
                stderr.on_broken_pipe()


@contextmanager
def telling() -> Iterator[None]:
    """Within the block, what the library logs goes to stderr, and what other libraries warn of."""
    handler = _Handler() if is_first() else logging.NullHandler()
    everyone, before = logging.getLogger(), logger.level
    everyone.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _log_warning
            yield
    finally:
        everyone.removeHandler(handler)
        logger.setLevel(before)


def _log_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    logger.warning(f"{category.__name__}: {message}")


def be_quiet(value: bool) -> bool:
    """What `-q` does: notes and progress are not shown. Warnings are: they concern the numbers."""
    if value:
        logger.setLevel(logging.WARNING)
    return value


def be_debugging(value: bool) -> bool:
    """What `--debug` does: an error is told with the traceback that led to it."""
    if value:
        logger.setLevel(logging.DEBUG)
    return value


def is_debugging() -> bool:
    return logger.isEnabledFor(logging.DEBUG)


@contextmanager
def progress(description: str, total: int) -> Iterator[Advance]:
    """A bar of `total` steps, as `memtool.progress.Progress` has it.

    In a log, and in a terminal that cannot move its cursor, it tells in a line every LOG_EVERY
    seconds how far it is: short work leaves none.
    """
    if not is_first() or not logger.isEnabledFor(logging.INFO):
        yield unseen
    elif stderr.moves_cursor:
        with _bar(description, total) as advance:
            yield advance
    else:
        yield _lines(description, total)


@contextmanager
def _bar(description: str, total: int) -> Iterator[Advance]:
    bar = Progress(
        # The two share what room is left.
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        # Rows that go to the same terminal stand above the bar; rows for a pipe stay there.
        redirect_stdout=sys.stdout.isatty(),
        # Steps may take minutes each.
        speed_estimate_period=math.inf,
        expand=True,
    )
    with bar:
        task = bar.add_task(printable(description), total=total)

        def advance(steps: int = 1, description: str | None = None) -> None:
            shown = None if description is None else printable(description)
            bar.update(task, advance=steps, description=shown)

        yield advance


def _lines(title: str, total: int) -> Advance:
    done, told, now = 0, clock(), ""

    def advance(steps: int = 1, description: str | None = None) -> None:
        nonlocal done, told, now
        done += steps
        now = f", {description}" if description else now
        if clock() - told >= LOG_EVERY:
            told = clock()
            logger.info(f"{title}: {done}/{total}{now}")

    return advance
