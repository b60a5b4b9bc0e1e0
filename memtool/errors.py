"""The one exception meant for users, and other people's exceptions in one line."""

from collections.abc import Mapping, Sequence
from typing import Any

# How errors and warnings begin on stderr.
ERROR = "memtool: error: "
WARNING = "memtool: warning: "


class MemtoolError(Exception):
    """What went wrong, in one line meant for the user: the value, the file and the way out.

    The command line prints it after `ERROR` and exits with 1.
    """


class Stopped(SystemExit):
    """A signal has asked the program to end."""


def one_line(error: BaseException) -> str:
    """An exception of other people's code: its type, and the beginning of what it says."""
    text = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_lack_of_memory(error: Exception) -> bool:
    """PyTorch has a type of error for it on a GPU, but not on a CPU."""
    told = str(error)
    in_torch = "out of memory" in told or "DefaultCPUAllocator" in told
    return isinstance(error, MemoryError) or in_torch


def last_line(error: BaseException) -> str:
    """The last line of what an exception says, at most 120 characters; its type if it says nothing.

    Libraries that chain several messages end with the one that matters.
    """
    return shortened((str(error).strip() or type(error).__name__).splitlines()[-1], 120)


def differences(
    recorded: Mapping[str, Any], settings: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Each setting that is not the same, in words.

    >>> differences({"seed": 0, "data": {"n": 5}}, {"seed": 0, "data": {"n": 6}})
    ['data.n was 5, is 6']
    """
    found = []
    for key in sorted(recorded.keys() | settings.keys()):
        before, now = (some.get(key, "not recorded") for some in (recorded, settings))
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += differences(before, now, f"{prefix}{key}.")
        elif before != now:
            found.append(f"{prefix}{key} was {shortened(before)}, is {shortened(now)}")
    return found


def shortened(text: object, most: int = 60) -> str:
    """The beginning of a text, in at most so many characters.

    >>> shortened("a cell of a table", 10)
    'a cell ...'
    """
    said = str(text)
    return said if len(said) <= most else said[: most - 3] + "..."


def printable(text: str) -> str:
    """The text with what would act on a terminal, is not seen or cannot be written, as escapes.

    >>> printable("a\\x1b[2J\\n\\udcff")
    'a\\\\x1b[2J\\\\n\\\\udcff'
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def some(names: Sequence[str], most: int = 3) -> str:
    """At most so many of the names, as far as a line has room for them.

    >>> some(["a", "b\\n", "c", "d"])
    'a, b\\\\n, c, ...'
    """
    shown = [printable(shortened(name, 200)) for name in names[:most]]
    return ", ".join([*shown, *(["..."] if len(names) > most else [])])


def told_names(names: Sequence[str], most: int = 5) -> str:
    """The first of some names, and how many more there are.

    >>> told_names(["a", "b\\n", "c"], most=2)
    'a, b\\\\n and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(map(printable, names[:most]))}{more}"


def counted(number: int, noun: str) -> str:
    """How many there are of something whose plural ends in s.

    >>> counted(1, "epoch"), counted(20, "epoch")
    ('1 epoch', '20 epochs')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


def told_size(size: int, up: bool = True) -> str:
    """A number of bytes in the largest unit of which it is one or more, rounded up, so that who
    allows for what is told allows for enough; or, of what there is, down.

    >>> told_size(5 * 2**28), told_size(300 * 2**20), told_size(1500), told_size(1500, up=False)
    ('1.3 GiB', '300.0 MiB', '1.5 KiB', '1.4 KiB')
    """
    unit, of_bytes = next((u, b) for u, b in UNITS.items() if size >= b or b == 2**10)
    tenths, more = divmod(10 * size, of_bytes)
    return f"{(tenths + (up and more > 0)) / 10:.1f} {unit}"
