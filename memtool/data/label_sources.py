"""Given labels that others made, in the files that they publish them in.

A source is `FILE` or `FILE:KEY`: a NumPy array (.npy), several by name (.npz, .safetensors), a
dict of arrays that PyTorch saved (.pt, .pth), or a table (.csv, .tsv, .txt) with or without a
header. `given_labels` makes of it one label per training example. Where a column names the image
files, its rows may be in any order.
"""

import csv
import io
import logging
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Container, Iterable, Mapping, Sequence, Set
from hashlib import file_digest
from itertools import chain, islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.contents import (
    AGAIN,
    HARMLESS,
    check_regular,
    check_unpacked,
    described,
    is_pickle,
)
from memtool.data import pictures
from memtool.data.classes import Values, is_number, values
from memtool.data.listing import Labels
from memtool.device import machine_memory
from memtool.errors import last_line, some, told_size
from memtool.paths import expanded

logger = logging.getLogger("memtool")

Arrays = Mapping[str, NDArray[Any]]
ARRAYS, PYTORCH, TABLES = (
    (".npy", ".npz", ".safetensors"),
    (".pt", ".pth"),
    (".csv", ".tsv", ".txt"),
)
SUFFIXES = (*ARRAYS, *PYTORCH, *TABLES)
OF_OTHERS = set(SUFFIXES) - {".safetensors"}  # certainly no label files of memtool's
DECIMAL = re.compile(r"-?\d+\.\d*([eE][+-]?\d{1,2})?")  # so some write whole numbers, too
NUMBER = re.compile(rf"-?\d+|{DECIMAL.pattern}")
SHARE = 16  # labels as text take some ten times their memory
PROTOCOL = 0x80  # the operation with which a pickle names its protocol
MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # in files of PyTorch before 1.6
PICKLES = 5  # that these files begin with; what tensors hold follows
MAX_OPERATIONS = 10_000_000  # of pickles that are looked at, in some ten seconds
WHOLE = ""  # the key of a file that holds a single array


def given_labels(
    source: str, classes: Sequence[str], true: Labels, files: Sequence[str] = ()
) -> tuple[Labels, dict[str, str | None]]:
    """The labels in a source, int64 (n,), numbered as `classes` are, and what to record of it: the
    name of the file, the key and the file's SHA-256.

    There must be one for each of the n `true` labels, in their order: the name of a class, or its
    number from 0 on. What stands beside a column of the names of the n image `files` is brought
    into their order. Raises MemtoolError, which names the file, if the labels are not so, if there
    are several columns and no key, and if a column names other image files.

    A warning tells if they agree with the true labels no more often than in another order.
    """
    path, key = split_source(source)
    arrays = _read(path, len(true), classes)
    names = _naming(arrays, classes, files, str(path))
    if names:
        first, order = next(iter(names.items()))
        arrays = {
            name: array[order] if array.shape[:1] == order.shape else array
            for name, array in arrays.items()
        }
        logger.info(f"{path}: its {first!r} says which image each label is of")
    chosen = _chosen(arrays, key, names, len(true), str(path))
    what = f"{path}: its labels {chosen!r}" if chosen else f"{path}: its labels"
    given = numbered(values(arrays[chosen], what), classes, what)
    if len(given) != len(true):
        raise MemtoolError(
            f"{what} are {len(given)}, the data set has {len(true)} training examples"
        )
    _warn_of_another_order(given, true, len(classes), what)
    with open(path, "rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    return given, {"file": path.name, "key": chosen or None, "sha256": digest}


def split_source(source: str) -> tuple[Path, str | None]:
    """The file and the key in `FILE` or `FILE:KEY`.

    >>> split_source("labels.pt:worse_label")
    (PosixPath('labels.pt'), 'worse_label')
    """
    path = expanded(source)
    if ":" in source and not path.exists():
        file, _, key = source.rpartition(":")
        return expanded(file), key
    return path, None


def numbered(labels: Values, classes: Sequence[str], what: str) -> Labels:
    """Labels as they are called, int64 or str (n,), as numbers of the `classes`, int64 (n,).

    Text is the name of a class. A number is one too if all classes are called by numbers, however
    these are written; else it counts the classes from 0. Raises MemtoolError, which calls the
    labels `what`, for one that is neither.

    >>> numbered(np.array(["bee", "ant"]), ["ant", "bee"], "labels")
    array([1, 0])
    >>> numbered(np.array([5, 1]), ["1", "5", "7"], "labels")
    array([1, 0])
    >>> numbered(np.array(["1", "2.0"]), ["1.0", "2.0", "3.0"], "labels")
    array([0, 1])
    """
    found, inverse = np.unique(labels, return_inverse=True)
    called = [str(one) for one in found.tolist()]
    plain = [_plain(name) for name in called]
    names = {name: number for number, name in enumerate(classes)}
    known = {_plain(name): number for name, number in names.items()}
    are_numbers = len(known) == len(names) and all(map(NUMBER.fullmatch, known))
    if all(name in names for name in called):
        numbers = [names[name] for name in called]
    elif are_numbers and all(name in known for name in plain):
        numbers = [known[name] for name in plain]
    elif all(is_number(name) and int(name) < len(classes) for name in plain):
        numbers = [int(name) for name in plain]
    else:
        raise _no_class(labels, called, classes, what)
    result: Labels = np.array(numbers, np.int64)[inverse.reshape(-1)]
    return result


def _no_class(
    labels: Values, called: Sequence[str], classes: Sequence[str], what: str
) -> MemtoolError:
    count = len(classes)
    if set(map(_plain, called)) == set(map(str, range(1, count + 1))):
        return MemtoolError(
            f"{what} count the classes from 1 to {count}; subtract 1, they count from 0"
        )
    valid = {*classes, *map(str, range(count))}
    wrong = next((name for name in called if not {name, _plain(name)} & valid), called[0])
    example = np.flatnonzero(labels.astype(str) == wrong)[0]
    return MemtoolError(
        f"{what}: that of example {example} is {wrong!r:.40}; it should be a class "
        f"({some(classes, 5)}), or, in all labels, the number of one (0 to {count - 1})"
    )


def _warn_of_another_order(given: Labels, true: Labels, classes: int, what: str) -> None:
    if not len(true):
        return
    shares = [np.bincount(labels, minlength=classes) / len(true) for labels in (given, true)]
    by_chance = 1 - float(shares[0] @ shares[1])
    share = float((given != true).mean())
    if by_chance > 0 and share > 0.9 * by_chance:
        logger.warning(
            f"{what} differ from the true ones for {100 * share:.1f} % of the examples, as they "
            "would in another order; are they in that of the data set?"
        )


def _naming(
    arrays: Arrays, classes: Sequence[str], files: Sequence[str], file: str
) -> dict[str, Labels]:
    """The arrays that name the image files of a data set, and where in them each file is, (n,).

    Raises MemtoolError for one that names other image files.
    """
    found: dict[str, Labels] = {}
    for name, array in arrays.items():
        if not files or array.dtype.kind != "U" or array.shape != (len(files),):
            continue
        cells = array.tolist()
        if len(set(cells)) < len(cells) or set(cells) <= set(classes):
            continue
        order = _order(cells, files)
        if order is not None:
            found[name] = order
        elif other := next((cell for cell in cells if _is_picture(cell)), None):
            raise MemtoolError(
                f"{file}: its {name!r} names images, such as {other!r:.80}, that are not those of "
                f"the data set, such as {files[0]}; leave it out if the labels are in the order of "
                "those"
            )
    return found


def _order(cells: Sequence[str], files: Sequence[str]) -> Labels | None:
    """Where in `cells` each file is, (n,): by as many folders above it as it takes to tell them
    apart, and with or without its suffix; None unless each is there."""
    for whole in (True, False):
        named, known = ([_parts(text, whole) for text in texts] for texts in (cells, files))
        for depth in range(1, max(map(len, named)) + 1):
            place = {parts[-depth:]: number for number, parts in enumerate(named)}
            wanted = [parts[-depth:] for parts in known]
            if len(place) == len(cells) and place.keys() == set(wanted):
                return np.array([place[parts] for parts in wanted], np.int64)
    return None


def _parts(path: str, whole: bool) -> tuple[str, ...]:
    """The folders and the file in a path of any system, the file without its suffix unless it is
    wanted `whole`."""
    path = path.replace("\\", "/")
    if not whole and _is_picture(path):
        path = os.path.splitext(path)[0]
    return tuple(part for part in path.split("/") if part not in ("", "."))


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in pictures.SUFFIXES


def _chosen(arrays: Arrays, key: str | None, names: Container[str], n: int, file: str) -> str:
    """The key of the labels among what a file holds; columns that number the examples are none, nor
    are the `names` of those that name them."""
    numberings = {name: _numbering(array, n) for name, array in arrays.items()}
    if not names and len(arrays) > 1 and False in numberings.values():
        name = next(name for name, in_order in numberings.items() if in_order is False)
        raise MemtoolError(
            f"{file}: its {name!r} numbers the examples, but not in their order; sort by it"
        )
    if key is not None and key not in arrays:
        raise MemtoolError(f"{file}: has no {key!r} (it has {_listed(arrays)})")
    others = [name for name, in_order in numberings.items() if in_order is None]
    candidates = [name for name in others if name not in names] or [*arrays]
    if key is None and len(candidates) > 1:
        raise MemtoolError(
            f"{file}: holds several ({_listed(candidates)}); say which one: {file}:{candidates[0]}"
        )
    return candidates[0] if key is None else key


def _numbering(array: NDArray[Any], n: int) -> bool | None:
    """Whether an array numbers n examples, from 0 or 1 on, in their order; None if it does not
    number them. Few examples may have as many classes."""
    if array.shape != (n,) or n < 20:
        return None
    if array.dtype.kind == "U":
        array = np.array([_plain(cell) for cell in array.tolist()])
    if array.dtype.kind == "U" and np.char.isdecimal(array).all():
        if np.char.str_len(array).max() > 18:  # no such numbering would be finished
            return None
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        return None
    for first in (0, 1):
        if np.array_equal(np.sort(array), np.arange(first, n + first)):
            return bool((np.diff(array) == 1).all())
    return None


def _listed(arrays: Iterable[str]) -> str:
    return some([name or "one array" for name in arrays], 12) or "nothing"


# --- Files ----------------------------------------------------------------------------------------


def _read(path: Path, n: int, classes: Sequence[str]) -> Arrays:
    """The arrays that a file holds, by name; n examples of these classes are expected."""
    if path.suffix.lower() not in SUFFIXES:
        raise MemtoolError(f"{path}: labels are read from {', '.join(SUFFIXES)} (FILE or FILE:KEY)")
    check_regular(path)
    if not path.is_file():
        raise MemtoolError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    _check_size(path, path.stat().st_size)
    try:
        if path.suffix.lower() in TABLES:
            return _columns(path, n, classes)
        return _torch_arrays(path) if path.suffix.lower() in PYTORCH else _numpy_arrays(path)
    except MemtoolError:
        raise
    except Exception as error:  # of libraries that read what may be anything
        raise MemtoolError(f"{path}: cannot be read as labels ({last_line(error)})") from error


def _check_size(path: Path, size: int) -> None:
    if size > (most := machine_memory() // SHARE):
        raise MemtoolError(
            f"{path}: takes {told_size(size)}, and labels are read from at most "
            f"{told_size(most)}, a {SHARE}th of the memory; save the labels alone"
        )


def _check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise MemtoolError or ValueError if an archive unpacks to too much; nothing is unpacked."""
    check_unpacked(archive, path.stat().st_size)
    _check_size(path, sum(member.file_size for member in archive.infolist()))


def _numpy_arrays(path: Path) -> Arrays:
    if path.suffix.lower() == ".safetensors":
        from safetensors.numpy import load_file

        return dict(load_file(path))
    with open(path, "rb") as file:
        try:
            content = np.load(file, allow_pickle=False)
        except ValueError as error:
            raise MemtoolError(
                f"{path}: is no array of numbers or of text ({last_line(error)}); save it as one: "
                "numpy.save(FILE, numpy.asarray(labels, dtype=int))"
            ) from error
        if isinstance(content, np.ndarray):
            return {WHOLE: content}
        try:
            _check_archive(path, content.zip)
            return {name: content[name] for name in content.files}
        except (ValueError, zipfile.BadZipFile) as error:
            raise MemtoolError(f"{path}: cannot be read as labels ({last_line(error)})") from error


def _torch_arrays(path: Path) -> Arrays:
    """The tensors, arrays and lists of numbers in what PyTorch saved; nothing in it runs."""
    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_archive(path, archive)
    try:
        with torch.serialization.safe_globals(_globals_of_numpy()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other protocols, some of which are read
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises nearly anything for what torch.save did not write
        if not is_pickle(path):
            told = described(path, weights=False) or "it is not as torch.save writes it"
            raise MemtoolError(f"{path}: cannot be read as labels ({told})") from error
        if _is_cut_short(path, error):
            raise MemtoolError(f"{path}: is cut short; {AGAIN}") from error
        if not isinstance(error, UnpicklingError) and _is_of_torch(path):
            raise
        raise MemtoolError(
            f"{path}: {_unread(path)}; save the labels alone: numpy.save(FILE, labels)"
        ) from error
    named = content if isinstance(content, dict) else {WHOLE: content}
    arrays = {str(name): _as_array(value) for name, value in named.items()}
    found = {name: array for name, array in arrays.items() if array is not None}
    if not found:
        raise MemtoolError(f"{path}: holds no arrays of labels, but a {type(content).__name__}")
    return found


def _unread(path: Path) -> str:
    """Why PyTorch loads nothing from a pickle without running what is in it."""
    if not _is_of_torch(path):
        return "is of pickle.dump, not of torch.save, and is not loaded"
    mark, protocol, *_ = _pickled(path)
    if mark == PROTOCOL and protocol > 2:
        return f"was saved with pickle_protocol={protocol}, of which arrays are not loaded"
    return "holds other objects than arrays of numbers or names, which are not loaded"


def _is_cut_short(path: Path, error: Exception) -> bool:
    """Whether a file that PyTorch did not load, with this error, ends within a pickle or before the
    numbers of its tensors do. Nothing in it runs."""
    if zipfile.is_zipfile(path):
        return False
    file = io.BytesIO(path.read_bytes())  # takes no length in a pickle for more than there is
    count = PICKLES if _is_of_torch(path) else 1
    operations = chain.from_iterable(pickletools.genops(file) for _ in range(count))
    try:
        for _ in islice(operations, MAX_OPERATIONS):
            pass
    except Exception:  # pickletools raises several kinds
        return not file.read(1)
    return "unexpected EOF" in str(error)


def _is_of_torch(path: Path) -> bool:
    """Whether `torch.save` wrote a pickle: a zip archive or, before PyTorch 1.6, what begins with
    its magic number."""
    return zipfile.is_zipfile(path) or MAGIC in _pickled(path)


def _pickled(path: Path) -> bytes:
    """The first bytes of a pickle that may lie in a zip archive."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            return file.read(32)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(name) as member:
            return member.read(32)


def _globals_of_numpy() -> list[Any]:
    """What pickles of arrays name, by old and new names; each makes numbers and no more."""
    import codecs

    from numpy._core.multiarray import _reconstruct, scalar

    codes = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8", "?", "U1", "S1")
    types = [type(np.dtype(code)) for code in codes]
    return [
        *(np.ndarray, np.dtype, codecs.encode, *types),
        *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    ]


def _as_array(value: Any) -> NDArray[Any] | None:
    """A tensor, an array, or a list of numbers or names, as an array; None for anything else."""
    if hasattr(value, "detach"):
        if value.nbytes > max(HARMLESS, value.untyped_storage().nbytes()):
            raise ValueError(f"a tensor claims {value.numel():,} numbers that it does not have")
        return np.asarray(value.detach().float() if value.is_floating_point() else value)
    if isinstance(value, np.ndarray | list | tuple) and len(value):
        array = np.asarray(value)
        return array if array.dtype.kind in "buifUS" and array.ndim else None
    return None


def _columns(path: Path, n: int, classes: Sequence[str]) -> Arrays:
    """The columns of a table by the names in its header; without one, by numbers from 1 on.

    Of n + 1 rows, the first is a header. Empty lines are no rows; where one of n + 1 could be that
    of an example without a label, they are refused."""
    content = path.read_bytes()
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    text = text.replace("\r\r\n", "\n").lstrip("\r\n")  # Windows makes \r\r\n of \r\n
    if sum(map(bool, map(str.strip, text.splitlines()))) == n + 1:
        text = re.sub(r"\A#[ \t]+", "", text)  # so savetxt begins a header
    lines = _lines(text, set(classes))
    end = len(lines)
    while end and not any(lines[end - 1]) and lines[end - 1] != [""]:  # as spreadsheets end, too
        end -= 1
    rows = [line for line in lines[:end] if line]
    # What pandas calls columns without names could be labels, and then the first of n + 1 is none.
    first = rows[0] if rows else []
    is_numbered = first == [*map(str, range(len(first)))]
    if len(rows) == n < (len(lines) if is_numbered else end):
        raise MemtoolError(
            f"{path}: has empty lines, and {n} others, one for each training example or a header "
            'and one too few; remove the empty lines, and write "" for a label that is missing'
        )
    if len(rows) not in (n, n + 1):
        raise MemtoolError(
            f"{path}: has {len(rows)} rows, the data set has {n} training examples (one row for "
            "each, and at most a header)"
        )
    names = rows.pop(0) if len(rows) == n + 1 else [str(i + 1) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise MemtoolError(
                f"{path}: has {len(row)} cells for example {number}, not {len(names)}"
            )
    if len(set(names)) < len(names):
        raise MemtoolError(f"{path}: two of its columns have one name ({', '.join(names)})")
    columns = zip(names, zip(*rows, strict=True), strict=True)
    return {name: np.array(cells) for name, cells in columns}


def _lines(text: str, classes: Set[str]) -> list[list[str]]:
    """The cells of each line; none of an empty one. The line `""` has one, which is empty.

    Lines that are the names of classes, of several words or with commas, are one cell each. Else,
    what stands between cells is what gives all lines equally many, two or more; if nothing does,
    what is most frequent in the last line. Several spaces are as one, since they align columns.
    Where pandas and R leave out the name of the column that numbers the rows, an empty one is put.
    """
    whole = [line.strip() for line in text.splitlines()]
    named = {line for line in whole[1:] if line}
    if named and named <= classes and any(re.search("[,;\t ]", name) for name in named):
        return [[line] if line else [] for line in whole]
    for mark in ",;\t ":
        lines = _divided(text, mark) if mark in text else []
        first, *rest = [line for line in lines if line] or [[]]
        if _lacks_a_name(first, rest):
            first.insert(0, "")
        if len(first) > 1 and all(len(line) == len(first) for line in rest):
            return lines
    last = text.rstrip().rpartition("\n")[2]
    return _divided(text, max(",;\t", key=last.count))


def _lacks_a_name(header: list[str], rows: list[list[str]]) -> bool:
    """Whether rows have one cell more than their header, the first of which numbers them."""
    if not rows or any(len(row) != len(header) + 1 for row in rows):
        return False
    return _numbering(np.array([row[0] for row in rows]), len(rows)) is not None


def _divided(text: str, delimiter: str) -> list[list[str]]:
    lines = (
        line.strip(" \r\n") + "\n" if line.strip() else "\n"
        for line in io.StringIO(text, newline="")
    )
    found = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    return [[cell.strip() for cell in cells] for cells in found]


def _plain(cell: str) -> str:
    """A whole number that is written with zeros before it, or a fraction of zeros, as its digits
    alone; other text as it is.

    >>> _plain("3.0"), _plain("1.000e+01"), _plain("03"), _plain("3.5"), _plain("v1.0")
    ('3', '10', '3', '3.5', 'v1.0')
    """
    if is_number(cell):
        return str(int(cell))
    if DECIMAL.fullmatch(cell) and (number := float(cell)).is_integer():
        return str(int(number))
    return cell
