"""Output files that are whole or absent: written beside their target, then renamed.

While a process writes `rows.csv`, the folder `.rows.csv.tmp` beside it is its own: a lock on a file
in there says that it lives. All temporary files are in there, those of libraries too, so that
whoever writes `rows.csv` next finds, and removes, what a killed process has left.
"""

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memtool import MemtoolError
from memtool.device import is_first
from memtool.paths import descriptor, is_special

NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)  # which Windows does not have
HOLDER = "holder"  # the file that is locked, and says who has locked it

_claims: set[Path] = set()  # the folders that are this process's own


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`; rename it to `path` if the block ends well.

    On any error, Ctrl-C included, the temporary file is removed and `path` stays as it was. Missing
    folders are made, a symbolic link keeps its target, and the new file has the permissions that
    the umask gives, whoever wrote it. Raises MemtoolError if the file cannot be written, or if
    another process is writing it.
    """
    if is_special(path):  # a rename would replace it
        yield path
        return
    try:
        with claimed(path) as folder:
            temporary = folder / str(os.getpid())
            try:
                temporary.touch()
                mode = temporary.stat().st_mode
                yield temporary
                temporary.chmod(mode)  # some libraries make files that nobody else may read
                os.replace(temporary, os.path.realpath(path))
            finally:
                with suppress(OSError):
                    temporary.unlink()
    except BrokenPipeError:  # of stdout, which is written at the same time: no fault of this file
        raise
    except OSError as error:
        raise _not_written(path, error) from error


@contextmanager
def claimed(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[Path]:
    """Within the block, no other process writes `path`. Yields the folder for temporary files,
    which is gone afterwards, as are those that were made for it and stayed empty; what killed
    processes left in it is removed.

    If another process is writing it, `waiting` is called and its end is waited for; without
    `waiting`, MemtoolError says who that is. Where there are no locks, as on Windows and some
    network drives, other processes are not kept away. May be nested. Raises MemtoolError if the
    folder cannot be made.
    """
    target = Path(os.path.realpath(path))
    folder = target.with_name(f".{target.name}.tmp")
    if folder in _claims:
        yield folder
        return
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        descriptor, is_locked = _claim(folder, path, waiting)
    except OSError as error:
        raise _not_written(path, error) from error
    _claims.add(folder)
    try:
        if is_locked:
            _empty(folder)
        yield folder
    finally:
        _claims.discard(folder)
        if is_locked:
            _empty(folder)
        with suppress(OSError):  # the lock goes last: nobody else may find a file in there
            (folder / HOLDER).unlink()
            folder.rmdir()
            for parent in missing:
                parent.rmdir()  # which refuses those that are not empty
        os.close(descriptor)


def _claim(folder: Path, path: Path, waiting: Callable[[], None] | None) -> tuple[int, bool]:
    """The open file that says who the folder's process is, and whether it could be locked."""
    holder = folder / HOLDER
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # the process before has just removed it, or it is something else
            if _is_no_folder(folder):
                raise
            continue
        try:
            descriptor = os.open(holder, os.O_RDWR | os.O_CREAT | NOFOLLOW, 0o666)
        except FileNotFoundError:  # the process before has just removed the folder
            continue
        try:
            is_locked = _lock(descriptor, path, waiting)
            if not is_locked or _is_same(descriptor, holder):
                with suppress(OSError):  # a full disk is told by what matters
                    os.ftruncate(descriptor, 0)
                    process = f"process {os.getpid()} on {socket.gethostname()}"
                    os.write(descriptor, process.encode())
                return descriptor, is_locked
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: Path, waiting: Callable[[], None] | None) -> bool:
    """Lock an open file, or raise MemtoolError if another process has; False without locks."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if not waiting:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace")
            raise MemtoolError(
                f"{path}: {holder or 'another process'} is writing it; wait for its end, or name "
                "another file"
            ) from error
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _is_no_folder(path: Path) -> bool:
    """Whether there is something at `path` that is not a folder."""
    with suppress(FileNotFoundError):
        return not stat.S_ISDIR(path.lstat().st_mode)
    return False


def _is_same(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def _empty(folder: Path) -> None:
    """Remove what is in a folder for temporary files, but for the file that is locked. It may be
    gone, with the folder that it was in."""
    for entry in folder.iterdir() if folder.exists() else ():
        if entry.name != HOLDER:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with suppress(OSError):
                    entry.unlink()


def check_writable(path: Path) -> None:
    """Check, before long work starts, that `path` can be written; nothing is left behind.

    Raises MemtoolError if it cannot be written, is a folder, is a file that this process has open
    (/dev/stderr, say), or is being written by another process. Of several processes that torchrun
    started, the first, which writes, checks alone: the others would find each other at it.
    """
    if not is_first():
        return
    if path.suffix == ".safetensors":
        check_name(path)
    try:
        if path.is_dir():
            raise MemtoolError(f"{path}: is a folder; name a file")
        if is_special(path):
            return
        if descriptor(path) is not None:  # the shell may append to it
            raise MemtoolError(
                f"{path}: is {os.path.realpath(path)}, which is open; name the file itself"
            )
        parents = Path(os.path.realpath(path)).parents
        if parents[0].exists():
            with claimed(path) as folder:
                (folder / "probe").touch()
        else:  # nobody writes it yet, so that there is nothing to claim
            existing = next(parent for parent in parents if parent.exists())
            tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise _not_written(path, error) from error


def check_name(path: Path) -> None:
    """Raise MemtoolError if safetensors could not open this file: its name is not UTF-8, or it is a
    pipe or a device, which would be waited for, or replaced by a file."""
    if is_special(path):
        raise MemtoolError(f"{path}: is a pipe or a device; name a file")
    try:
        os.fsencode(path).decode()
    except UnicodeError as error:
        raise MemtoolError(
            f"{path}: a name that is not UTF-8, which safetensors cannot open; rename it"
        ) from error


def _not_written(path: Path, error: OSError) -> MemtoolError:
    return MemtoolError(f"{path}: cannot be written ({error.strerror or error})")
