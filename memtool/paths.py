"""What a path means, and what stands at it."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from memtool import MemtoolError


def as_path(given: Any) -> Path:
    """What a caller has given for a path, `expanded`; raises MemtoolError for what is none."""
    try:
        return expanded(given)
    except TypeError:
        kind = type(given).__name__
        raise MemtoolError(f"{given!r:.40} is of type {kind}; a path is a str or a Path") from None


def expanded(path: str | Path) -> Path:
    """A path with ~ as the user's home, as no shell makes it of --option=~/x or of a variable."""
    return Path(os.path.expanduser(path))


def is_special(path: Path) -> bool:
    """Whether `path` is a pipe or a device, such as /dev/null."""
    with suppress(OSError):  # a name that no file can have: whoever opens it says so
        return path.exists() and not path.is_file() and not path.is_dir()
    return False


def descriptor(path: Path) -> int | None:
    """The file descriptor that a path names, as /dev/stdout and /dev/fd/3 do; None if it is another
    path, be it that of the same file."""
    descriptors = os.path.realpath("/dev/fd")
    for _ in range(4):  # a link to /dev/stdout, that to /proc/self/fd/1
        if path.name.isdecimal() and os.path.realpath(path.parent) == descriptors:
            return int(path.name)
        try:
            path = path.parent / os.readlink(path)
        except OSError:
            break
    return None
