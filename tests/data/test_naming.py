"""Columns that name image files: which rows are of which images, and which are refused."""

import numpy as np
import pytest

from memtool import MemtoolError
from memtool.data.naming import named_order

CLASSES = ("ant", "bee")
# Names recur in both classes.
FILES = [f"data/train/{name}/{number:04d}.jpg" for name in CLASSES for number in range(30)]
ORDER = np.random.default_rng(0).permutation(60)
PLACES = np.argsort(ORDER)  # where each file is among the rows
FOLDERS = [FILES[n].split("/")[2] for n in ORDER]
NAMES = [FILES[n].split("/")[3] for n in ORDER]
STEMS = [name.removesuffix(".jpg") for name in NAMES]
PATHS = [FILES[n] for n in ORDER]


def found(columns, files=FILES):
    return named_order(columns, CLASSES, files, "y.csv")


@pytest.mark.parametrize(
    "columns",
    [
        {"class": FOLDERS, "file": NAMES},
        {"file": NAMES, "class": FOLDERS},
        {"class": FOLDERS, "id": STEMS},
        {"class": FOLDERS, "id": [str(int(stem)) for stem in STEMS]},
        {"class": [str(CLASSES.index(name)) for name in FOLDERS], "file": NAMES},
        {"split": ["train"] * 60, "folder": [f"train/{name}" for name in FOLDERS], "file": NAMES},
    ],
    ids=[
        "class and file",
        "file and class",
        "without suffix",
        "numbers",
        "number of a class",
        "path of a folder",
    ],
)
def test_a_folder_and_a_file_name_an_image_together(columns) -> None:
    names, order = found(columns)
    assert set(names) == columns.keys() - {"split"}
    assert order.tolist() == PLACES.tolist()


@pytest.mark.parametrize("counts", [[3] * 11, range(2, 13)], ids=["equal", "unequal"])
def test_numbers_are_names_of_folders_before_they_are_numbers_of_classes(counts) -> None:
    classes = sorted(map(str, range(11)))  # 0, 1, 10, 2, ...
    pairs = [
        (name, f"{n}.png")
        for name, count in zip(classes, counts, strict=True)
        for n in range(count)
    ]
    order = np.random.default_rng(0).permutation(len(pairs))
    folders, names = zip(*(pairs[n] for n in order), strict=True)
    _, places = named_order(
        {"folder": folders, "file": names}, classes, ["/".join(pair) for pair in pairs], "y.csv"
    )
    assert places.tolist() == np.argsort(order).tolist()


def test_all_columns_that_name_images_are_told() -> None:
    names, order = found({"path": PATHS, "id": [path[:-4] for path in PATHS], "class": FOLDERS})
    assert (names, order.tolist()) == (["path", "id"], PLACES.tolist())


def test_columns_that_disagree_are_refused() -> None:
    columns = {"path": PATHS, "nearest": PATHS[1:] + PATHS[:1]}
    with pytest.raises(MemtoolError, match="'path' and 'nearest' name the images in several"):
        found(columns)


def test_numbers_of_rows_do_not_count_beside_names() -> None:
    files = [f"{name}/{number}.png" for name in CLASSES for number in range(name == "bee", 60, 2)]
    rows = [files[n] for n in ORDER]
    names, order = found({"": [*map(str, range(60))], "file": rows}, files)
    assert (names, order.tolist()) == (["file"], PLACES.tolist())


def test_rows_of_other_images_are_left_aside() -> None:
    names, order = found({"path": PATHS}, FILES[10:50:3])
    assert (names, order.tolist()) == (["path"], PLACES[10:50:3].tolist())


OTHER = "ant/0031"


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (
            {"file": NAMES},
            r"'file' does not tell all images apart, such as '00..\.jpg'; .* as in ant",
        ),
        ({"id": STEMS}, r"'id' does not tell all images apart, such as '00..'; .* ant/0000\.jpg"),
        ({"path": [PATHS[0], *PATHS[:-1]]}, f"such as '{PATHS[0]}'; name each by as much"),
        ({"id": [OTHER, *(path[:-4] for path in PATHS[1:])]}, f"1 of 60, such as '{OTHER}'"),
        (
            {"id": [OTHER, OTHER + "2", *PATHS[2:]]},
            f"'id' names images .* 2 of 60, such as '{OTHER}'",
        ),
        (
            {"path": [f"elsewhere/{n}.png" for n in range(60)]},
            "60 of 60, such as 'elsewhere/0.png'",
        ),
        ({"class": FOLDERS[::-1], "file": NAMES}, "'file' does not tell all images apart"),
        ({"a": [""] * 59 + ["x.png"], "b": ["?"] * 60}, "'a' names images .* 60 of 60, such as ''"),
    ],
)
def test_names_that_do_not_fit_are_refused(columns, told: str) -> None:
    with pytest.raises(MemtoolError, match=told) as caught:
        found(columns)
    assert "leave it out if the labels are in the order of the data set" in str(caught.value)


def test_images_without_a_row_are_told() -> None:
    with pytest.raises(MemtoolError, match="lacks 1 image of the data set, such as data/train/bee"):
        found(
            {"path": [*PATHS, "data/train/ant/0030.jpg"]}, [*FILES[:50], "data/train/bee/0030.jpg"]
        )


@pytest.mark.parametrize(
    "cells",
    [
        FOLDERS,
        [str(n % 2) for n in range(60)],
        [*map(str, range(60))],
        [str(n // 3 + 5) for n in range(60)],
        ["train", "test"] * 30,
        [f"{n / 60}" for n in range(60)],
        ["?"] * 60,
    ],
    ids=["classes", "numbers of classes", "numbering", "ages", "words", "scores", "sign"],
)
def test_other_columns_name_no_images(cells) -> None:
    assert found({"more": cells}) is None
    names, _ = found({"more": cells, "path": PATHS})
    assert names == ["path"]


@pytest.mark.parametrize("word", ["train", "train/easy"])
def test_a_word_that_is_the_name_of_one_image_names_no_images(word) -> None:
    files = [*FILES, f"data/train/bee/{word.rpartition('/')[2]}.jpg"]
    assert found({"split": [word] * 61}, files) is None


def test_words_that_recur_name_images_if_files_are_called_so_as_often() -> None:
    files = [f"{name}/img{number}.png" for name in CLASSES for number in range(30)]
    cells = [f"img{number}" for _ in CLASSES for number in range(20, 50)]
    with pytest.raises(MemtoolError, match="'id' names images that are not in the data set, 40 of"):
        found({"id": cells}, files)
