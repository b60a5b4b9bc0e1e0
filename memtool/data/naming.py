"""Columns of a table that name image files, or number rows: which row is of which image.

A column is a list of cells, one per row.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from memtool import MemtoolError
from memtool.data import pictures
from memtool.data.classes import composed, is_number, plain
from memtool.data.listing import Labels
from memtool.errors import counted

Order = tuple[list[str], Labels]  # the columns that tell an order, and the row of each image, (n,)
IF_HEADER = "if it is a header, the row of an example is missing"


def named_order(
    columns: Mapping[str, Sequence[str]], classes: Sequence[str], files: Sequence[str], what: str
) -> Order | None:
    """Which columns say of which of n image `files` each row is, and the row of each file, int64
    (n,); None if none names images. There may be rows of other images.

    A column names an image by as much of its path as it takes, with or without a suffix; or two
    columns do, the one its folder or the number of its class, the other the file. Raises
    MemtoolError, which begins with `what`, where a column evidently names images, but not each file
    once, and where two disagree.
    """
    alone = {
        name: order
        for name, cells in columns.items()
        if not set(cells) <= set(classes) and (order := _order(cells, files)) is not None
    }
    names = [name for name in alone if numbering(columns[name]) is None] or [*alone]
    found: dict[tuple[str, ...], Labels] = {(name,): alone[name] for name in names}
    if not found:
        named = [name for name, cells in columns.items() if _are_names(cells, files, classes)]
        found = _with_folders(columns, named, classes, files)
        if named and not found:
            raise MemtoolError(
                f"{what}: its {named[0]!r} {_misfit(columns[named[0]], files)}, or leave it out if "
                "the labels are in the order of the data set"
            )
    if not found:
        return None
    names = list(dict.fromkeys(name for several in found for name in several))
    order, *others = found.values()
    if any((other != order).any() for other in others):
        raise MemtoolError(
            f"{what}: its {' and '.join(map(repr, names))} name the images in several orders; "
            "leave all but one out"
        )
    return names, order


def _with_folders(
    columns: Mapping[str, Sequence[str]],
    named: Sequence[str],
    classes: Sequence[str],
    files: Sequence[str],
) -> dict[tuple[str, ...], Labels]:
    """The pairs of columns that name the files: the folder, or else the number of the class that it
    is called by, and one of those `named`."""
    called = {str(number): name for number, name in enumerate(classes)}
    found: dict[tuple[str, ...], Labels] = {}
    for folder, file in product(columns, named):
        as_names = columns[folder]
        as_numbers = [called.get(cell, cell) for cell in as_names]
        for folders in (as_names, as_numbers):
            paths = ["/".join(pair) for pair in zip(folders, columns[file], strict=True)]
            if (order := _order(paths, files)) is not None:
                found[folder, file] = order
                break
    return found


def _order(cells: Sequence[str], files: Sequence[str]) -> Labels | None:
    """Where in `cells` each file is, (n,): by as many folders above it as it takes to tell them
    apart, and with or without its suffix; None unless each is there."""
    if len(set(cells)) < len(cells):
        return None
    for whole in (True, False):
        named, known = ([_parts(text, whole) for text in texts] for texts in (cells, files))
        for depth in range(1, max(map(len, named)) + 1):
            place = {parts[-depth:]: number for number, parts in enumerate(named)}
            wanted = [parts[-depth:] for parts in known]
            is_clear = len(place) == len(cells) and len(set(wanted)) == len(files)
            if is_clear and place.keys() >= set(wanted):
                return np.array([place[parts] for parts in wanted], np.int64)
    return None


def _are_names(cells: Sequence[str], files: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether cells evidently name images: by the suffix of one, or by names that files have, too.
    Of words, a tenth has to be names of files: one may be so by chance. Of numbers, most; nearly
    all where they recur, as ages do."""
    labels = {*classes, *map(str, range(len(classes)))}
    if labels.issuperset(map(plain, cells)) or numbering(cells) is not None:
        return False
    if any(map(is_picture, cells)):
        return True
    named, known = (Counter(_parts(text, False)[-1:] for text in texts) for texts in (cells, files))
    shared = named & known
    of_numbers = 0.5 if len(set(cells)) == len(cells) else 0.9
    least = of_numbers if all(is_number(name) for (name,) in shared) else 0.1
    return shared.total() > least * len(files)


def _misfit(cells: Sequence[str], files: Sequence[str]) -> str:
    """What is wrong with names of images that do not fit the files, and one that is wrong."""
    named, known = ([_parts(text, False) for text in texts] for texts in (cells, files))
    longest = max(map(len, known))
    needed = next((d for d in range(1, longest) if _are_distinct(known, d)), longest)
    depth = min(needed, max(map(len, named)))
    rows = Counter(parts[-depth:] for parts in named)
    there = {parts[-depth:] for parts in known}
    if len(cells) > len(files) and (missing := there - rows.keys()):
        lacks = (
            name for name, parts in zip(files, known, strict=True) if parts[-depth:] in missing
        )
        told = counted(len(missing), "image")
        return f"lacks {told} of the data set, such as {next(lacks)}; add what is missing"
    absent = [cell for cell, parts in zip(cells, named, strict=True) if parts[-depth:] not in there]
    if absent and len(cells) == len(files):
        way_out = f"correct it ({IF_HEADER})" if absent == [cells[0]] else "correct them"
        return (
            f"names images that are not in the data set, {len(absent)} of {len(cells)}, such as "
            f"{absent[0]!r:.80} (one that is: {files[0]}); {way_out}"
        )
    cell = max(zip(cells, named, strict=True), key=lambda one: rows[one[1][-depth:]])[0]
    path = "/".join(_parts(files[0], True)[-needed:])
    return (
        f"does not tell all images apart, such as {cell!r:.80}; name each by as much of its path "
        f"as it takes, as in {path}"
    )


def _are_distinct(paths: Sequence[tuple[str, ...]], depth: int) -> bool:
    return len({parts[-depth:] for parts in paths}) == len(paths)


def _parts(path: str, whole: bool) -> tuple[str, ...]:
    """The folders and the file in a path of any system, the file without its suffix, and without
    zeros before a number, unless it is wanted `whole`."""
    parts = [part for part in composed(path).replace("\\", "/").split("/") if part not in ("", ".")]
    if parts and not whole:
        name = os.path.splitext(parts[-1])[0] if is_picture(parts[-1]) else parts[-1]
        parts[-1] = plain(name)
    return tuple(parts)


def is_picture(name: str) -> bool:
    """Whether a name has the suffix of an image file."""
    return os.path.splitext(name)[1].lower() in pictures.SUFFIXES


def numbering(cells: Sequence[str]) -> bool | None:
    """Whether the cells number their rows, from 0 or 1 on, in their order; None if they do not
    number them. Few rows may have as many classes."""
    if len(cells) < 20 or not all(is_number(plain(cell)) for cell in cells):
        return None
    numbers = np.array([int(plain(cell)) for cell in cells])
    for first in (0, 1):
        if np.array_equal(np.sort(numbers), np.arange(first, len(numbers) + first)):
            return bool((np.diff(numbers) == 1).all())
    return None
