"""Text that people type: specs of models and data sets, `NAME?key=value&key=value`, ratios, and
patterns of layers.

The last `?` begins the options, because a path may contain others. Keys and values may be
percent-encoded, so that `%26` is an `&` within a value. A `%` that begins no escape stands for
itself, as in `split_at=80%`, and a `+` is not a space. The name is never encoded.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from urllib.parse import quote, unquote

from memtool import MemtoolError
from memtool.paths import expanded


def parse(spec: str, kind: str) -> tuple[str, dict[str, str]]:
    """The name in a spec and its options, decoded. Of an option given twice, the last one counts.

    Raises MemtoolError, in which the spec is called a `kind` ("model", "data set"), if an option
    has no `=`.

    >>> parse("folder:a?b?split_at=80%&mean=0.5%2C0.4", "data set")
    ('folder:a?b', {'split_at': '80%', 'mean': '0.5,0.4'})
    """
    name, options = split(spec, kind)
    return name, {_decoded(key): _decoded(value) for key, value in options.items()}


def split(spec: str, kind: str) -> tuple[str, dict[str, str]]:
    """As `parse`, but with keys and values as they were typed."""
    name, mark, query = spec.rpartition("?")
    if not mark:
        return spec, {}
    options = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals:
            raise MemtoolError(
                f"{kind} {spec!r}: options go as NAME?key=value&key=value after the last ?, "
                f"and {part!r} has no ="
            )
        options[key] = value
    return name, options


def join(name: str, options: Mapping[str, str]) -> str:
    """The spec that `split` takes apart; keys and values are written as they are.

    A name that contains a `?` is followed by another one even if there are no options.
    """
    query = "&".join(f"{key}={value}" for key, value in options.items())
    return f"{name}?{query}" if query or "?" in name else name


def same(one: str, other: str, kind: str, directory: str = "") -> bool:
    """Whether two specs say the same, perhaps by different paths or with options in another order.
    The first one's paths start at `directory`, the other's at the present one.

    >>> same("folder:photos?a=1&b=2", "folder:./photos/?b=2&a=1", "data set")
    True
    """
    (name, options), (its_name, its_options) = split(one, kind), split(other, kind)
    parts = [_place(part, directory) for part in name.split(":")]
    return parts == [_place(part) for part in its_name.split(":")] and options == its_options


def _place(part: str, directory: str = "") -> str:
    """The real path of a file or folder; what is none, such as the name of a model, as it is."""
    path = os.path.join(directory, expanded(part))
    return os.path.realpath(path) if os.path.exists(path) else os.path.normpath(part)


def matches(name: str, pattern: str) -> bool:
    """Whether a layer matches a pattern: a glob, its very name, or `all`.

    >>> matches("conv1.0", "conv?.*"), matches("w[0]", "w[0]"), matches("conv1", "all")
    (True, True, True)
    """
    return pattern in ("all", name) or fnmatchcase(name, pattern)


PARTS = ("front.", "back.")  # what the names of a stitched model's layers begin with
LayerName = tuple[str, bool]  # with whether it is the name in a stitched model


def corresponding(
    layers: Iterable[Sequence[LayerName]], others: Iterable[Sequence[LayerName]]
) -> list[tuple[int, int]]:
    """The places of the layers of one network, and of those of another that each corresponds to:
    the one that shares a name with it.

    Each layer has its names from the outermost on: in its network and, if that is stitched, in the
    part that it is of. Whether a network is stitched counts, since others may have parts that are
    called `front` and `back`, too.

    >>> back = [("back", True)], [("back.fc", True), ("fc", False)]
    >>> corresponding(back, [[("back", False)], [("fc", False)]])
    [(1, 1)]
    """
    theirs = list(enumerate(others))
    places = {name: at for at, names in theirs for name in names}
    places |= {names[0]: at for at, names in theirs}  # before what others are called inside
    found = ([name for name in names if name in places] for names in layers)
    return [(at, places[shared[0]]) for at, shared in enumerate(found) if shared]


def encoded(text: str) -> str:
    """A key or a value, percent-encoded, for `join` to write and `parse` to read.

    >>> encoded("a&b"), encoded("[4,4]")
    ('a%26b', '[4,4]')
    """
    # JSON can hold half of a surrogate pair, which strict UTF-8 cannot.
    return quote(text, safe="/:,[]", errors="surrogatepass")


def fraction(text: str) -> float:
    """A number, or a percentage as the fraction that it is. Raises ValueError for other text.

    >>> fraction("80%"), fraction("0.8")
    (0.8, 0.8)
    """
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def ratio(text: str) -> float:
    """A fraction in [0, 1]. Raises MemtoolError for anything else.

    >>> ratio("37.5%")
    0.375
    """
    try:
        value = fraction(text)
    except ValueError:
        raise MemtoolError(f"{text!r} is not a ratio, such as 25% or 0.25") from None
    if not 0 <= value <= 1:
        is_percent = 1 < value <= 100 and text[0] != "0" and "%" not in text
        hint = f"; did you mean {text}%?" if is_percent else ""
        raise MemtoolError(f"ratio {text} is outside [0, 1]{hint}")
    return value


def _decoded(text: str) -> str:
    """What `encoded` was given; text whose escapes are not UTF-8 stays as it is."""
    try:
        return unquote(text, errors="surrogatepass")
    except UnicodeDecodeError:
        return text
