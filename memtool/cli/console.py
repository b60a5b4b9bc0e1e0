"""What goes to stderr: notes and progress, and none of it with `-q`.

A terminal gets bars with the time left; a log gets one line for each note, and now and then one
that says how far long work has got.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic as clock
from typing import Protocol

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_EVERY = 30.0  # seconds between two lines of progress in a log


class Advance(Protocol):
    def __call__(self, steps: int = 1, description: str | None = None) -> None: ...


class Console:
    """Notes and progress bars on stderr."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._rich = RichConsole(stderr=True, highlight=False, markup=False, soft_wrap=True)

    @property
    def shows_bars(self) -> bool:
        """Whether there is a terminal to draw on, and somebody wants to see it."""
        return not self.quiet and self._rich.is_terminal

    def note(self, text: str) -> None:
        if not self.quiet:
            self._rich.print(text)

    def warn(self, text: str) -> None:
        """Said even with `-q`: it concerns the numbers."""
        self._rich.print(f"memtool: warning: {text}")

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """A bar of `total` steps; yields the function that advances it and may rename it.

        In a log, it tells in a line every LOG_EVERY seconds, so that short work leaves none.
        """
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._rich,
            transient=True,
            # Rows that go to the same terminal stand above the bar; rows for a pipe stay there.
            redirect_stdout=sys.stdout.isatty(),
            disable=not self.shows_bars,
        )
        title = description
        done, told = 0, clock()
        with bar:
            task = bar.add_task(title, total=total)

            def advance(steps: int = 1, description: str | None = None) -> None:
                nonlocal done, told
                bar.update(task, advance=steps, description=description)
                done += steps
                if not self._rich.is_terminal and clock() - told >= LOG_EVERY:
                    told = clock()
                    self.note(
                        f"{title}: {done}/{total}" + (f", {description}" if description else "")
                    )

            yield advance
