"""What goes to stderr: notes and progress, and none of it with `-q`.

A terminal gets bars with the time left; a log gets one line for each note and nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
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


class Advance(Protocol):
    def __call__(self, steps: int = 1, description: str | None = None) -> None: ...


class Console:
    """Notes and progress bars on stderr; a `silent` one, of a second process, says nothing."""

    def __init__(self, quiet: bool, silent: bool = False) -> None:
        self.quiet = quiet or silent
        self._rich = RichConsole(
            stderr=True, highlight=False, markup=False, soft_wrap=True, quiet=silent
        )

    def note(self, text: str) -> None:
        if not self.quiet:
            self._rich.print(text)

    def warn(self, text: str) -> None:
        """Said even with `-q`: it concerns the numbers."""
        self._rich.print(f"memtool: warning: {text}")

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """A bar of `total` steps; yields the function that advances it and may rename it."""
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._rich,
            transient=True,
            disable=self.quiet or not self._rich.is_terminal,
        )
        with bar:
            task = bar.add_task(description, total=total)

            def advance(steps: int = 1, description: str | None = None) -> None:
                bar.update(task, advance=steps, description=description)

            yield advance
