"""Given labels that others made, in the files that they publish them in.

A source is `FILE` or `FILE:KEY`: a NumPy array (.npy), several by name (.npz, .safetensors), a
dict of arrays that PyTorch saved (.pt, .pth), or a table (.csv, .tsv, .txt) with or without a
header. `given_labels` makes of it one label per training example. Where columns name the image
files, the rows may be in any order; `naming` finds it.
"""

import csv
import io
import logging
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from hashlib import file_digest
from itertools import chain, islice, product
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
from memtool.data.arrays import read_array
from memtool.data.classes import NUMBER, Values, composed, is_number, plain, values
from memtool.data.listing import Labels
from memtool.data.naming import IF_HEADER, Order, is_picture, named_order, numbering
from memtool.device import machine_memory
from memtool.errors import last_line, some, told_size
from memtool.paths import expanded

logger = logging.getLogger("memtool")

Arrays = Mapping[str, NDArray[Any]]
Contents = Mapping[str, NDArray[Any] | str]  # arrays, and why what is not read is none
ARRAYS, PYTORCH, TABLES = (
    (".npy", ".npz", ".safetensors"),
    (".pt", ".pth"),
    (".csv", ".tsv", ".txt"),
)
SUFFIXES = (*ARRAYS, *PYTORCH, *TABLES)
OF_OTHERS = set(SUFFIXES) - {".safetensors"}  # certainly no label files of memtool's
SHARE = 16  # labels as text take some ten times their memory
PROTOCOL = 0x80  # the operation with which a pickle names its protocol
MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # in files of PyTorch before 1.6
PICKLES = 5  # that these files begin with; what tensors hold follows
MAX_OPERATIONS = 10_000_000  # of pickles that are looked at, in some ten seconds
NO_ARRAY = "it is no array of numbers or of text"
SAVE = "save the labels as numbers or as text: numpy.save(FILE, numpy.asarray(labels, dtype=int))"
WHOLE = ""  # the key of a file that holds a single array


@dataclass(frozen=True)
class Wanted:
    """The n training examples that labels are wanted for: their classes, their true labels, int64
    (n,), the names of their files, if they are files, and a mask, (N,), of these examples among
    those that a part of a data set was chosen from, if it was."""

    classes: Sequence[str]
    true: Labels
    files: Sequence[str] = ()
    chosen: NDArray[np.bool_] | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """How many examples there may be labels of: n, or all N."""
        n = len(self.true)
        return n, n if self.chosen is None else len(self.chosen)

    def of(self, labels: Labels) -> Labels:
        """The n labels that are wanted, of n or of N; others as they are."""
        n, all_ = self.sizes
        return labels[self.chosen] if n != all_ == len(labels) else labels

    def agreement(self, labels: Labels) -> int:
        """How many of the n labels that are wanted, of n or of N, are the true ones."""
        return int((self.of(labels) == self.true).sum())

    def told(self) -> str:
        n, all_ = self.sizes
        return f"{n} training examples" + (f", chosen from {all_}" if n != all_ else "")


def given_labels(
    source: str,
    classes: Sequence[str],
    true: Labels,
    files: Sequence[str] = (),
    chosen: NDArray[np.bool_] | None = None,
) -> tuple[Labels, dict[str, str | None]]:
    """The labels in a source, int64 (n,), numbered as `classes` are, and what to record of it: the
    name of the file, the key and the file's SHA-256.

    There must be one for each of the n `true` labels, in their order, or one for each of the N
    examples of which a mask, `chosen` (N,), took these: the name of a class, or its number from 0
    on. Those beside columns that name the n image `files` are brought into their order. Raises
    MemtoolError, which names the file, if the labels are not so, if there are several columns and
    no key, and if a column names other image files.

    A warning tells if they agree with the true labels no more often than in another order.
    """
    path, key = split_source(source)
    wanted = Wanted(classes, true, files, chosen)
    arrays = _read(path, key, wanted)
    size = _size([array for name, array in arrays.items() if key in (None, name)], wanted)
    texts = {name: cells for name, array in arrays.items() if (cells := _cells(array, size))}
    columns = {name: cells for name, cells in texts.items() if name != key and len(arrays) > 1}
    named = named_order(columns, classes, files, str(path)) if files else None
    name = _chosen(arrays, key, named[0] if named else (), texts, str(path))
    what = f"{path}: its labels {name!r}" if name else f"{path}: its labels"
    given = numbered(values(arrays[name], what), classes, what)
    if named and len(given) == size:
        given = _in_named_order(given, named, texts, wanted, str(path))
    elif len(given) != len(wanted.of(given)):
        logger.info(f"{path}: has labels of {len(given)} examples, of which {len(true)} are chosen")
        given = wanted.of(given)
    if len(given) != len(true):
        raise MemtoolError(f"{what} are {len(given)}, the data set has {wanted.told()}")
    _warn_of_another_order(given, true, len(classes), what)
    with open(path, "rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    return given, {"file": path.name, "key": name or None, "sha256": digest}


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

    Text is the name of a class, however its accents are encoded. A number is one too if all classes
    are called by numbers, however these are written; else it counts the classes from 0. Raises
    MemtoolError, which calls the labels `what`, for one that is neither.

    >>> numbered(np.array(["bee", "ant"]), ["ant", "bee"], "labels")
    array([1, 0])
    >>> numbered(np.array([5, 1]), ["1", "5", "7"], "labels")
    array([1, 0])
    >>> numbered(np.array(["1", "2.0"]), ["1.0", "2.0", "3.0"], "labels")
    array([0, 1])
    """
    found, inverse = np.unique(labels, return_inverse=True)
    called = [composed(str(one)) for one in found.tolist()]
    written = [plain(name) for name in called]
    names = {composed(name): number for number, name in enumerate(classes)}
    known = {plain(name): number for name, number in names.items()}
    are_numbers = len(known) == len(names) and all(map(NUMBER.fullmatch, known))
    if all(name in names for name in called):
        numbers = [names[name] for name in called]
    elif are_numbers and all(name in known for name in written):
        numbers = [known[name] for name in written]
    elif all(is_number(name) and int(name) < len(classes) for name in written):
        numbers = [int(name) for name in written]
    else:
        raise _no_class([*map(str, labels.tolist())], classes, what)
    result: Labels = np.array(numbers, np.int64)[inverse.reshape(-1)]
    return result


def _no_class(labels: Sequence[str], classes: Sequence[str], what: str) -> MemtoolError:
    count = len(classes)
    if {plain(label) for label in labels} == set(map(str, range(1, count + 1))):
        last = f", or, if {count} means class 0 as in the files of SVHN, take labels % {count}"
        return MemtoolError(
            f"{what} count the classes from 1 to {count}; subtract 1, they count from 0"
            + (last if [*classes] == [*map(str, range(count))] else "")
        )
    valid = {*map(composed, classes), *map(str, range(count))}
    wrong = [n for n, label in enumerate(labels) if not {composed(label), plain(label)} & valid]
    row = wrong[0] if wrong else 0
    return MemtoolError(
        f"{what}: that in row {row} (from 0) is {labels[row]!r:.40}; it should be a class "
        f"({some(classes, 5)}), or, in all labels, the number of one (0 to {count - 1})"
        + (f"; {IF_HEADER}" if wrong == [0] else "")
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


def _size(arrays: Iterable[NDArray[Any]], wanted: Wanted) -> int:
    """Of how many examples arrays have labels: n, if any does, else N."""
    n, all_ = wanted.sizes
    return n if any(n in array.shape for array in arrays) else all_


def _cells(array: NDArray[Any], size: int) -> list[str] | None:
    """The cells of a column of so many names or whole numbers; None for any other array."""
    if array.shape not in ((size,), (size, 1), (1, size)) or array.dtype.kind not in "USOiu":
        return None
    cells = array.reshape(-1).tolist()
    return [_text(cell).strip() for cell in cells]


def _text(cell: Any) -> str:
    # Names of files need not be UTF-8, and Python gives them so.
    return cell.decode(errors="surrogateescape") if isinstance(cell, bytes) else str(cell)


def _in_named_order(
    given: Labels, named: Order, texts: Mapping[str, list[str]], wanted: Wanted, file: str
) -> Labels:
    """Labels of rows in the order of the images that columns name.

    Where these columns number the rows, it may be in the order of the data set, whatever the images
    are called. What they mean is then what agrees with the true labels more often."""
    names, order = named
    told = f"{' and '.join(map(repr, names))} {'say' if len(names) > 1 else 'says'}"
    logger.info(f"{file}: its {told} which image each label is of")
    by_name = given[order]
    if any(numbering(texts[name]) is None for name in names):
        return by_name
    by_number = wanted.of(given[np.argsort([int(plain(cell)) for cell in texts[names[0]]])])
    margin = wanted.agreement(by_name) - wanted.agreement(by_number)
    if not margin and (by_name != by_number).any():
        raise MemtoolError(
            f"{file}: its {names[0]!r} may number the examples in the order of the data set or be "
            f"names of images, such as {wanted.files[0]}; leave it out, or give whole paths"
        )
    return by_number if margin < 0 else by_name


def _chosen(
    arrays: Arrays,
    key: str | None,
    names: Container[str],
    texts: Mapping[str, list[str]],
    file: str,
) -> str:
    """The key of the labels among what a file holds; columns that number the examples are none, nor
    are the `names` of those that name them."""
    numberings = {name: numbering(cells) for name, cells in texts.items()}
    if not names and len(arrays) > 1 and False in numberings.values():
        name = next(name for name, in_order in numberings.items() if in_order is False)
        raise MemtoolError(
            f"{file}: its {name!r} numbers the examples, but not in their order; sort by it"
        )
    if key is not None and key not in arrays:
        raise MemtoolError(f"{file}: has no {key!r} (it has {_listed(arrays)})")
    others = [name for name in arrays if numberings.get(name) is None]
    candidates = [name for name in others if name not in names] or [*arrays]
    if key is None and len(candidates) > 1:
        raise MemtoolError(
            f"{file}: holds several ({_listed(candidates)}); say which one: {file}:{candidates[0]}"
        )
    return candidates[0] if key is None else key


def _listed(arrays: Iterable[str]) -> str:
    return some([name or "one array" for name in arrays], 12) or "nothing"


# --- Files ----------------------------------------------------------------------------------------


def _read(path: Path, key: str | None, wanted: Wanted) -> Arrays:
    """The arrays that a file holds, by name."""
    if path.suffix.lower() not in SUFFIXES:
        raise MemtoolError(f"{path}: labels are read from {', '.join(SUFFIXES)} (FILE or FILE:KEY)")
    check_regular(path)
    if not path.is_file():
        raise MemtoolError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    _check_size(path, path.stat().st_size)
    try:
        if path.suffix.lower() in TABLES:
            return _columns(path, wanted)
        found = _torch_arrays(path) if path.suffix.lower() in PYTORCH else _numpy_arrays(path)
    except MemtoolError:
        raise
    except Exception as error:  # of libraries that read what may be anything
        raise MemtoolError(f"{path}: cannot be read as labels ({last_line(error)})") from error
    return _readable(found, key, path)


def _readable(found: Contents, key: str | None, path: Path) -> Arrays:
    """The arrays among what a file holds. A warning tells of what cannot be read; MemtoolError is
    raised if it is, or without a key may be, the labels."""
    arrays = {name: array for name, array in found.items() if not isinstance(array, str)}
    for name, why in found.items():
        if not isinstance(why, str):
            continue
        its = f"{path}: its {name!r}" if name else f"{path}:"
        if not arrays or name == key:
            raise MemtoolError(f"{its} cannot be read as labels ({why}); {SAVE}")
        if key is None:
            other = f"{path}:{next(iter(arrays))}"
            raise MemtoolError(f"{its} cannot be read as labels ({why}); to take others: {other}")
        logger.warning(f"{its} cannot be read, and is left aside ({why})")
    return arrays


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


def _numpy_arrays(path: Path) -> Contents:
    if path.suffix.lower() == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as stored:
            return {name: _tensor(stored, name) for name in stored.keys()}  # noqa: SIM118
    with open(path, "rb") as file:
        try:
            content = np.load(file, allow_pickle=False)
        except ValueError as error:
            raise MemtoolError(
                f"{path}: is no array of numbers or of text ({last_line(error)}); {SAVE}"
            ) from error
        if isinstance(content, np.ndarray):
            return {WHOLE: content}
        try:
            _check_archive(path, content.zip)
            return {
                member.filename.removesuffix(".npy"): _member(content.zip, member)
                for member in content.zip.infolist()
            }
        except (ValueError, zipfile.BadZipFile) as error:
            raise MemtoolError(f"{path}: cannot be read as labels ({last_line(error)})") from error


def _tensor(stored: Any, name: str) -> NDArray[Any] | str:
    try:
        array: NDArray[Any] = stored.get_tensor(name)
    except (AttributeError, TypeError):
        return "it is of a type that NumPy does not have"
    return array


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any] | str:
    with archive.open(member) as stream:
        try:
            return read_array(stream)
        except ValueError as error:
            return last_line(error)


def _torch_arrays(path: Path) -> Contents:
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


def _as_array(value: Any) -> NDArray[Any] | str | None:
    """A tensor, an array, or a list of numbers or names, as an array, or why it is none; None for
    anything else.

    Names in a list stay objects: as text, each would take as much memory as the longest of them.
    """
    is_list = isinstance(value, list | tuple) and len(value) > 0
    if is_list and any(isinstance(one, str | bytes) for one in value):
        is_text = all(isinstance(one, str | bytes) for one in value)
        return np.array(value, object) if is_text else NO_ARRAY
    if not (is_list or isinstance(value, np.ndarray) or hasattr(value, "detach")):
        return None
    try:
        array: NDArray[Any] = _of_tensor(value) if hasattr(value, "detach") else np.asarray(value)
    except Exception as error:  # NumPy and PyTorch raise several kinds
        return NO_ARRAY if is_list else last_line(error)
    if not array.ndim:
        return None
    return array if array.dtype.kind in "buifUS" else NO_ARRAY


def _of_tensor(tensor: Any) -> NDArray[Any]:
    if tensor.nbytes > max(HARMLESS, tensor.untyped_storage().nbytes()):
        raise ValueError(f"a tensor claims {tensor.numel():,} numbers that it does not have")
    return np.asarray(tensor.detach().float() if tensor.is_floating_point() else tensor)


def _columns(path: Path, wanted: Wanted) -> Arrays:
    """The columns of a table, as objects, by the names in its header; without one, by numbers from
    1 on. Of one row more than there are examples, the first may be a header."""
    rows = _rows(path, wanted)
    is_one_more = len(rows) - 1 in wanted.sizes
    has_header = is_one_more and _is_header(rows, wanted)
    if len(rows) - has_header not in wanted.sizes:
        told = "one row for each, and at most a header"
        if is_one_more:
            told = f"the first row, {','.join(rows[0])!r:.80}, has a label, and is no header"
        raise MemtoolError(
            f"{path}: has {len(rows)} rows, the data set has {wanted.told()} ({told})"
        )
    names = rows.pop(0) if has_header else [str(i + 1) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise MemtoolError(
                f"{path}: has {len(row)} cells in row {number} (from 0), not {len(names)}"
            )
    if len(set(names)) < len(names):
        raise MemtoolError(f"{path}: two of its columns have one name ({', '.join(names)})")
    # As arrays of text, each cell would take as much memory as the longest of its column.
    columns = zip(names, zip(*rows, strict=True), strict=True)
    return {name: np.array(cells, object) for name, cells in columns}


def _rows(path: Path, wanted: Wanted) -> list[list[str]]:
    """The rows of a table, and its header, if it has one. Empty lines are no rows; where one of
    them could be that of an example without a label, they are refused."""
    content = path.read_bytes()
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    text = text.replace("\r\r\n", "\n").lstrip("\r\n")  # Windows makes \r\r\n of \r\n
    if sum(map(bool, map(str.strip, text.splitlines()))) - 1 in wanted.sizes:
        text = re.sub(r"\A#[ \t]+", "", text)  # so savetxt begins a header
    lines = _lines(text, set(map(composed, wanted.classes)))
    end = len(lines)
    while end and not any(lines[end - 1]) and lines[end - 1] != [""]:  # as spreadsheets end, too
        end -= 1
    rows = [line for line in lines[:end] if line]
    # What pandas calls columns without names; if it does, an empty line at the end may be a label.
    if len(rows) in wanted.sizes and len(rows) < (len(lines) if _is_default(rows) else end):
        raise MemtoolError(
            f"{path}: has empty lines, and {len(rows)} others, one for each training example or a "
            'header and one too few; remove the empty lines, and write "" for a label that is '
            "missing"
        )
    return rows


def _is_default(rows: Sequence[Sequence[str]]) -> bool:
    """Whether a table begins with what pandas calls columns without names: 0, 1, ..."""
    return bool(rows) and [*rows[0]] == [*map(str, range(len(rows[0])))]


def _is_header(rows: Sequence[Sequence[str]], wanted: Wanted) -> bool:
    """Whether the first of some rows, one more than examples, is their header.

    It is one above names of images. It is none if it is one of the rows that a column numbers, nor
    if it has a label in a column of labels. Where it looks like a header all the same, labels
    without it have to agree with the true ones more often than with it: all of them, if there may
    be so many, or those without the last row."""
    columns = [*zip(*rows, strict=False)]
    is_default = _is_default(rows)
    if not is_default and any(numbering(cells) is not None for cells in columns):
        return False
    labels = [found for cells in columns if (found := _as_labels(cells, wanted)) is not None]
    if not labels or any(_is_name_of(cells, is_picture) for cells in columns):
        return True
    kinds = (NUMBER.fullmatch, re.compile(r"\d").search)  # names of examples have digits, too
    if not is_default and not any(_is_name_of(*pair) for pair in product(columns, kinds)):
        return False
    end = len(rows) if len(rows) in wanted.sizes else -1
    with_it, without = (
        sum(wanted.agreement(its[part]) for its in labels) for part in (slice(end), slice(1, None))
    )
    return without > with_it


def _as_labels(cells: Sequence[str], wanted: Wanted) -> Labels | None:
    """Cells as the labels that they may be."""
    try:
        return numbered(values(np.array(cells, object), "cells"), wanted.classes, "cells")
    except MemtoolError:
        return None


def _is_name_of(cells: Sequence[str], is_kind: Callable[[str], Any]) -> bool:
    """Whether a column has cells of a kind below one that is of another."""
    return not is_kind(cells[0]) and all(map(is_kind, cells[1:]))


def _lines(text: str, classes: Set[str]) -> list[list[str]]:
    """The cells of each line; none of an empty one. The line `""` has one, which is empty.

    Lines that are the names of classes, of several words or with commas, are one cell each. Else,
    what stands between cells is what gives all lines equally many, two or more; if nothing does,
    what is most frequent in the last line. Several spaces are as one, since they align columns.
    Where pandas and R leave out the name of the column that numbers the rows, an empty one is put.
    """
    whole = [line.strip() for line in text.splitlines()]
    named = {composed(line) for line in whole[1:] if line}
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
    return numbering([row[0] for row in rows]) is not None


def _divided(text: str, delimiter: str) -> list[list[str]]:
    lines = (
        line.strip(" \r\n") + "\n" if line.strip() else "\n"
        for line in io.StringIO(text, newline="")
    )
    found = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    return [[cell.strip() for cell in cells] for cells in found]
