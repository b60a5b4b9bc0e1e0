"""Output files that are whole or absent: written beside their target, then renamed."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memtool import MemtoolError


def _is_special(path: Path) -> bool:
    """Whether `path` is a device or a pipe, such as /dev/null. It is written in place then, since a
    rename would replace it."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` if the block ends well.

    On any error, Ctrl-C included, the temporary file is removed and `path` stays as it was. Missing
    folders are made, and a symbolic link keeps its target. Raises MemtoolError if the file cannot
    be written.
    """
    if _is_special(path):
        yield path
        return
    target = Path(os.path.realpath(path))
    temporary = _temporary(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except BrokenPipeError:  # of stdout, which is written at the same time: no fault of this file
        raise
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[bool]:
    """Within the block, no other process is in one that locks `path`, an empty file that is made.

    `waiting` is called if another one is now. A process that dies gives its lock back. Yields
    whether there is such a lock: Windows and some network drives have none. Raises MemtoolError if
    the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        yield _has_lock(descriptor, waiting)
    finally:
        os.close(descriptor)


def _has_lock(descriptor: int, waiting: Callable[[], None]) -> bool:
    try:
        import fcntl
    except ImportError:
        return False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def leftovers(path: Path) -> list[Path]:
    """The temporary files of `replacing(path)` in processes that were killed, or are running."""
    return [file for file in path.parent.glob(f".{path.name}.*.tmp") if file.is_file()]


def check_writable(path: Path) -> None:
    """Check, before long work starts, that `path` can be written; nothing is left behind.

    Raises MemtoolError if it cannot be written, or is a folder.
    """
    if path.suffix == ".safetensors":
        check_name(path)
    try:
        if path.is_dir():
            raise MemtoolError(f"{path}: is a folder; name a file")
        if _is_special(path):
            return
        target = Path(os.path.realpath(path))
        folder = next(parent for parent in target.parents if parent.exists())
        probe = _temporary(folder / target.name)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _not_written(path, error) from error


def check_name(path: Path) -> None:
    """Raise MemtoolError if safetensors could not open a file of this name: it is not UTF-8."""
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError as error:
        raise MemtoolError(
            f"{path}: a name that is not UTF-8, which safetensors cannot open; rename it"
        ) from error


def _not_written(path: Path, error: OSError) -> MemtoolError:
    return MemtoolError(f"{path}: cannot be written ({error.strerror or error})")
