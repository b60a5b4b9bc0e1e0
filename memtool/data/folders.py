"""Folders of image files, with one folder for each class."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np

from memtool import MemtoolError
from memtool.contents import read_text
from memtool.data.classes import check_spelling, composed
from memtool.data.listing import Examples, Listing
from memtool.data.pictures import SUFFIXES
from memtool.errors import told_names
from memtool.paths import expanded

TESTS = ("test", "val", "valid", "validation")  # names of a test split; the first that has labels
PARTS = ("train", "test")  # of a data set
# Words that name splits, and those that go with them, joined on (testset) or apart (val_images).
TRAINING = "train|training|trn"
TESTING = "|".join((*TESTS, "testing|tst|dev|development|eval|evaluation|hold ?out|held ?out"))
BESIDE = "set|sets|data|image|images|img|imgs|split|splits"
SPLIT_WORD = re.compile(rf"\b(?:(?P<train>{TRAINING})|(?P<test>{TESTING})|{BESIDE})+\b")
BETWEEN_WORDS = re.compile(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# Tiny ImageNet's list of the images in val/images: name, class and box, separated by tabs.
ANNOTATIONS = "val_annotations.txt"

Words = tuple[str | None, str]  # the part that a name tells, if any, and the name's other words

logger = logging.getLogger("memtool")


@dataclass(frozen=True)
class Skipped:
    """What in a folder of images does not count: how many entries of each kind, and one of them."""

    kinds: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, path: object, count: int = 1) -> None:
        self.kinds[kind] += count
        self.examples.setdefault(kind, str(path))

    def tell(self, root: Path) -> None:
        """Say in a note what was skipped, if anything was."""
        parts = [
            f"{kind}: {count} ({self.examples[kind]})" for kind, count in sorted(self.kinds.items())
        ]
        if parts:
            logger.info(f"{root}: skipped, {', '.join(parts)}")


def listed(path: str) -> Listing:
    """The image files in a folder: train/CLASS/** and test/CLASS/** (or val/), or CLASS/**, which
    is not split.

    As in torchvision's ImageFolder, the files in all folders within that of a class belong to it,
    and are sorted by folder and name, as the classes are. Instead of folders, a test split may have
    Tiny ImageNet's `val_annotations.txt`; one without labels does not count. A folder train/ that
    holds no folders, and has no test split beside it, is a class of that name. What else is skipped
    (hidden files, other suffixes) is told in a note. Raises MemtoolError if the folder is of
    another form, or if a class has no images; in test/ some classes may have none.
    """
    root = expanded(path)
    if not root.is_dir():
        raise MemtoolError(f"{root}: no such folder (from data set {'folder:' + path!r})")
    skipped = Skipped()
    tests = [root / name for name in TESTS if (root / name).is_dir()]
    train = root / "train"
    is_split = train.is_dir() and (tests or _folders(train))
    listing = _split(root, tests, skipped) if is_split else _unsplit(root, skipped)
    skipped.tell(root)
    return listing


def _unsplit(root: Path, skipped: Skipped) -> Listing:
    if (root / ANNOTATIONS).is_file():
        names = _annotations(root / ANNOTATIONS)
        classes = sorted(set(names.values()))
        return Listing(tuple(classes), None, _annotated(root, names, classes, skipped))
    classes = _class_names(root, skipped)
    _check_no_splits(root, classes)
    listing = Listing(tuple(classes), None, _files_of(root, classes, skipped))
    _warn_of_classes_within(root, classes, listing.test.items)
    return listing


def _warn_of_classes_within(root: Path, names: Sequence[str], files: Iterable[str]) -> None:
    """Warn if the classes hold their images in folders of their own, which may be the classes: of a
    single one, or by the same names in all, as in splits whose names are not known as such."""
    holders = {str(root / name) for name in names}
    if any(os.path.dirname(file) in holders for file in files):
        return
    shared = set.intersection(*(_unpacked(root, name)[1] for name in names))
    if len(names) == 1:
        logger.warning(
            f"{root}: has one class only, {names[0]!r}, whose images are in folders of their "
            f"own; if these are the classes, say folder:{root / names[0]}"
        )
    elif len(shared) > 1:
        logger.warning(
            f"{root}: has folders of the same names ({told_names(sorted(shared))}) in all classes, "
            f"{told_names(names)}; if these are splits, rename them to train and test"
        )


def _check_no_splits(root: Path, names: Sequence[str]) -> None:
    """Raise MemtoolError if folders are called as splits are, in a way that is not read: their
    names would be the classes."""
    words = {name: _words(name) for name in names}
    splits = [name for name in names if words[name][0]]
    if pair := _train_and_test(root, names, words):
        (train, classes), (test, _) = (_unpacked(root, name) for name in pair)
        divided = f", or divide {train} (folder:{root / train} with --split-at 80%)"
        raise MemtoolError(
            f"{root}: {told_names(splits)} look like splits, not classes; rename {train} to train "
            f"and {test} to test{divided if classes else ''}; "
            "if they are classes, rename them without such words as train and test"
        )
    if all(part and not others for part, others in words.values()):
        lacks = "test" if words[names[0]][0] == "train" else "train"
        path, classes = _unpacked(root, names[0])
        named = f"name it itself (folder:{root / path}), or, " if classes else ""
        raise MemtoolError(
            f"{root}: has {names[0]} but no {lacks}; {named}if it is a class, rename it"
        )


def _train_and_test(
    root: Path, names: Sequence[str], words: Mapping[str, Words]
) -> tuple[str, str] | None:
    """A training and a test split, if two folders are: their names differ in that word alone, or
    all names have such a word and the two hold folders of the same names, their classes."""
    training, testing = ([name for name in names if words[name][0] == part] for part in PARTS)
    pairs = list(product(training, testing))
    for train, test in pairs:
        if words[train][1] == words[test][1]:
            return train, test
    if len(training) + len(testing) == len(names):
        held = {name: _unpacked(root, name)[1] for name in names}
        for train, test in pairs:
            if len(held[train] & held[test]) > 1:
                return train, test
    return None


def _words(name: str) -> Words:
    """What the words in the name of a folder say; letters alone make words.

    >>> [_words(name) for name in ("seg_trainset", "PublicTest-2", "TRAIN", "valley")]
    [('train', 'seg'), ('test', 'public'), ('train', ''), (None, 'valley')]
    """
    text = " ".join(BETWEEN_WORDS.split(name)).lower()
    found = list(SPLIT_WORD.finditer(text))
    part = next((part for part in PARTS if any(match[part] for match in found)), None)
    return part, " ".join(SPLIT_WORD.sub("", text).split())


def _unpacked(root: Path, name: str) -> tuple[str, set[str]]:
    """The name of a folder and the folders in it; NAME/INNER and those in INNER, if that is the
    only one and has some, as archives unpack to."""
    found = _folders(root / name)
    if len(found) == 1:
        inner = os.path.join(name, *found)
        if within := _folders(root / inner):
            return inner, within
    return name, found


def _folders(folder: Path) -> set[str]:
    return {entry.name for entry in _entries(folder) if os.path.isdir(entry)}


def _split(root: Path, tests: Sequence[Path], skipped: Skipped) -> Listing:
    """Of train/ and of the first of `tests` that has labels."""
    train = root / "train"
    if not tests:
        raise MemtoolError(
            f"{root}: has train but none of {', '.join(TESTS)}; divide train itself "
            f"(folder:{train} with --split-at 80%), or, if it is a class, rename it"
        )
    if not _folders(train):
        raise MemtoolError(
            f"{train}: should hold one folder for each class, and holds none; if it and "
            f"{tests[0].name} are classes, rename them"
        )
    classes = _class_names(train, skipped)
    chosen = next((test for test in tests if _has_labels(test, classes)), None)
    if chosen is None:
        raise MemtoolError(
            f"{tests[0]}: holds images without labels: no folders of classes, no {ANNOTATIONS}; "
            f"divide train instead (folder:{train} with --split-at 80%)"
        )
    for test in tests[: tests.index(chosen)]:
        logger.info(f"{test}: its images have no labels; {chosen} is the test split")
    known = {"train", *(test.name for test in tests[: tests.index(chosen) + 1])}
    for entry in _entries(root):
        if entry.name not in known:
            kind = "folders" if os.path.isdir(entry) else "files"
            skipped.add(f"{kind} beside train and {chosen.name}", entry.path)
    return Listing(
        tuple(classes),
        _files_of(train, classes, skipped),
        _test_files(chosen, classes, train, skipped),
    )


def _has_labels(test: Path, classes: Sequence[str]) -> bool:
    """Whether a test split has labels: a list of them, or any folders but Tiny ImageNet's one."""
    folders = _folders(test)
    is_listed = (test / ANNOTATIONS).is_file()
    return is_listed or bool(folders - {"images"}) or "images" in folders & set(classes)


def _test_files(test: Path, classes: Sequence[str], train: Path, skipped: Skipped) -> Examples:
    """The files of a test split, of the classes of `train`; a class may have none."""
    if (test / ANNOTATIONS).is_file():
        return _annotated(test, _annotations(test / ANNOTATIONS), classes, skipped)
    called = {composed(name): name for name in _class_names(test, skipped)}
    unknown = called.keys() - set(map(composed, classes))
    if unknown:
        raise MemtoolError(f"{test}: class {min(unknown)!r} is not in {train}")
    names = [called.get(composed(name), name) for name in classes]
    return _files_of(test, names, skipped, allow_empty=True)


def _class_names(folder: Path, skipped: Skipped) -> list[str]:
    entries = _entries(folder, skipped)
    names = sorted(entry.name for entry in entries if os.path.isdir(entry))
    if not names:
        raise MemtoolError(f"{folder}: should hold one folder for each class, and holds none")
    check_spelling(names, str(folder))
    for entry in entries:
        if not os.path.isdir(entry):
            skipped.add("files outside the folders of classes", entry.path)
    return names


def _files_of(
    folder: Path, classes: Sequence[str], skipped: Skipped, allow_empty: bool = False
) -> Examples:
    """The paths of all image files, class by class, and their labels.

    Raises MemtoolError for a class that has none or, with `allow_empty`, only if no class has any.
    """
    found: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        absent = allow_empty and not (folder / name).is_dir()
        own = [] if absent else _image_files(folder / name, skipped)
        if not own and not allow_empty:
            raise _no_images(folder / name)
        found += own
        labels += [label] * len(own)
    if not found:
        raise _no_images(folder)
    return Examples(np.array(found, dtype=object), np.array(labels, dtype=np.int64))


def _no_images(folder: Path) -> MemtoolError:
    return MemtoolError(f"{folder}: holds no images ({', '.join(sorted(SUFFIXES))})")


def _image_files(folder: Path, skipped: Skipped) -> list[str]:
    """The image files in a folder and in those within it, in the order of ImageFolder."""
    parent = Path(os.path.realpath(folder.parent))
    above = frozenset(map(str, (parent, *parent.parents)))
    return sorted(_walk(folder, skipped, above), key=os.path.split)


def _walk(folder: Path, skipped: Skipped, above: frozenset[str]) -> Iterator[str]:
    """The image files in a folder and in those within it. Links to folders are followed, except to
    the folder itself and to those `above`, which are real paths."""
    real = os.path.realpath(folder)
    if real in above:
        skipped.add("links to a folder above", folder)
        return
    for entry in _entries(folder, skipped):
        suffix = os.path.splitext(entry.name)[1].lower()
        if os.path.isdir(entry):
            yield from _walk(Path(entry.path), skipped, above | {real})
        elif suffix in SUFFIXES:
            yield entry.path
        elif entry.name != ANNOTATIONS:
            skipped.add(f"{suffix} files" if suffix else "files without a suffix", entry.path)


def _annotations(path: Path) -> dict[str, str]:
    """The class of each image that Tiny ImageNet's list of annotations names."""
    names: dict[str, str] = {}
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MemtoolError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        name, _, rest = line.partition("\t")
        if line.strip() and not (name and rest):
            raise MemtoolError(
                f"{path}, line {number}: is not a name and a class with tabs between"
            )
        if line.strip():
            names[composed(name)] = composed(rest.split("\t")[0])
    if not names:
        raise MemtoolError(f"{path}: is empty")
    return names


def _annotated(
    folder: Path, names: dict[str, str], classes: Sequence[str], skipped: Skipped
) -> Examples:
    """The files in a folder that has annotations, and their labels, sorted by name.

    Raises MemtoolError for an image that is missing or of a class not among `classes`.
    """
    files = {composed(os.path.basename(file)): file for file in _image_files(folder, skipped)}
    label_of = {composed(name): label for label, name in enumerate(classes)}
    for name, its in names.items():
        if name not in files:
            raise MemtoolError(f"{folder}: has no {name}, which is in {ANNOTATIONS}")
        if its not in label_of:
            raise MemtoolError(f"{folder / ANNOTATIONS}: {name} is of class {its!r}, not in train")
    for name in sorted(files.keys() - names.keys()):
        skipped.add(f"images that are not in {ANNOTATIONS}", files[name])
    chosen = sorted(names)
    return Examples(
        np.array([files[name] for name in chosen], dtype=object),
        np.array([label_of[names[name]] for name in chosen], dtype=np.int64),
    )


def _entries(folder: Path, skipped: Skipped | None = None) -> list["os.DirEntry[str]"]:
    """What a folder holds, hidden files left out."""
    try:
        with os.scandir(folder) as scanned:
            entries = list(scanned)
    except OSError as error:
        raise MemtoolError(f"{folder}: cannot be read ({error.strerror})") from error
    if skipped is not None:
        for entry in entries:
            if entry.name.startswith("."):
                skipped.add("hidden files", entry.path)
    return [entry for entry in entries if not entry.name.startswith(".")]
