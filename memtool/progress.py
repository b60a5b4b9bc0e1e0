"""Progress of long work: the one protocol by which the library tells it, whoever shows it.

    with progress("comparing", len(batches)) as advance:
        for batch in batches:
            ...
            advance()

The library takes a `Progress` and calls it; by default that is `silent`. The command line passes
one that draws a bar or writes to a log.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    def __call__(self, steps: int = 1, description: str | None = None) -> None:
        """Some steps are done; `description` says at what the work is now."""


class Progress(Protocol):
    def __call__(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Within the block, work of `total` steps is under way."""


def unseen(steps: int = 1, description: str | None = None) -> None:
    """An `Advance` that shows nothing."""


@contextmanager
def silent(description: str, total: int) -> Iterator[Advance]:
    """A `Progress` that shows nothing."""
    yield unseen
