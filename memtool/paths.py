"""What stands at a path."""

from contextlib import suppress
from pathlib import Path


def is_special(path: Path) -> bool:
    """Whether `path` is a pipe or a device, such as /dev/null."""
    with suppress(OSError):  # a name that no file can have: whoever opens it says so
        return path.exists() and not path.is_file() and not path.is_dir()
    return False
