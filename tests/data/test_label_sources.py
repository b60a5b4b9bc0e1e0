"""Given labels that others made."""

import io
import os
import pickle
import time
import tracemalloc
import warnings
import zipfile
from contextlib import nullcontext
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import save_file

from memtool import MemtoolError
from memtool.data import label_sources
from memtool.data.label_sources import given_labels, numbered, split_source

CLASSES = ("ant", "bee", "cat")
TRUE = np.arange(60, dtype=np.int64) % 3
GIVEN = np.where(np.arange(60) < 6, (TRUE + 1) % 3, TRUE)
NAMES = np.array(CLASSES)[GIVEN]


def found(source):
    given, recorded = given_labels(str(source), CLASSES, TRUE)
    assert given.dtype == np.int64 and given.tolist() == GIVEN.tolist()
    assert len(recorded["sha256"]) == 64
    return recorded["file"], recorded["key"]


@pytest.mark.parametrize(
    "array",
    [
        GIVEN,
        GIVEN.astype(np.uint8),
        GIVEN.astype(np.float32),
        GIVEN.astype(str),
        GIVEN[:, None],
        NAMES,
        NAMES.astype("S"),
        np.eye(3)[GIVEN],
    ],
    ids=["int", "uint8", "float", "digits", "column", "names", "bytes", "one-hot"],
)
def test_an_array_of_any_type(tmp_path, array):
    np.save(tmp_path / "y.npy", array)
    assert found(tmp_path / "y.npy") == ("y.npy", None)


def test_one_of_several_arrays_is_chosen_by_its_key(tmp_path):
    arrays = {"clean": TRUE, "worse": GIVEN, "index": np.arange(60)}
    np.savez(tmp_path / "y.npz", **arrays)
    save_file(arrays, tmp_path / "y.safetensors")
    torch.save({**arrays, "info": "text", "shape": torch.Size([3])}, tmp_path / "y.pt")
    torch.save(arrays, tmp_path / "z.pth", _use_new_zipfile_serialization=False)
    torch.save({key: torch.from_numpy(value) for key, value in arrays.items()}, tmp_path / "t.pt")
    for name in ("y.npz", "y.safetensors", "y.pt", "z.pth", "t.pt"):
        assert found(f"{tmp_path / name}:worse") == (name, "worse")
        with pytest.raises(MemtoolError, match=f"holds several .*say which one: .*{name}:"):
            found(tmp_path / name)
        with pytest.raises(MemtoolError, match="has no 'other' .it has .*worse"):
            found(f"{tmp_path / name}:other")
    np.savez(tmp_path / "one.npz", index=np.arange(60), labels=GIVEN)
    assert found(tmp_path / "one.npz") == ("one.npz", "labels")


def rows(*columns, separator=",", end="\n"):
    return "".join(separator.join(map(str, cells)) + end for cells in zip(*columns, strict=True))


@pytest.mark.parametrize(
    "text, key",
    [
        (rows(GIVEN), "1"),
        (rows(NAMES), "1"),
        ("label\n" + rows(NAMES), "label"),
        ("id,label\n" + rows(range(60), GIVEN), "label"),
        (rows(range(1, 61), NAMES), "2"),
        ("sample;label\r\n" + rows(range(60), NAMES, separator=";", end="\r\n"), "label"),
        ("id\tlabel\n\n" + rows(range(60), GIVEN, separator="\t"), "label"),
        ("label\n" + rows([f"{n}.0" for n in GIVEN]) + "\n", "label"),
        ('"label"\n' + rows([f'"{name}"' for name in NAMES]), "label"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_with_and_without_a_header(tmp_path, text, key, encoding):
    (tmp_path / "y.csv").write_text(text, encoding=encoding, newline="")
    assert found(tmp_path / "y.csv") == ("y.csv", key)


def test_a_table_in_another_order_is_refused(tmp_path):
    order = np.random.default_rng(0).permutation(60)
    (tmp_path / "y.csv").write_text("id,label\n" + rows(order, GIVEN[order]))
    for source in ("y.csv", "y.csv:label"):
        with pytest.raises(MemtoolError, match="'id' numbers the examples, but not in their order"):
            found(tmp_path / source)


FILES = [f"data/train/{CLASSES[n % 3]}/img{n // 3:02d}.png" for n in range(60)]


@pytest.mark.parametrize(
    "name",
    [
        lambda file: file,
        lambda file: file.removeprefix("data/train/"),
        lambda file: file.removeprefix("data/train/").removesuffix(".png"),
        lambda file: "C:\\" + file.replace("/", "\\").replace(".png", ".jpg"),
    ],
)
def test_labels_are_of_the_images_that_a_column_names(tmp_path, name):
    order = np.random.default_rng(0).permutation(60)
    names = np.array([name(file) for file in FILES])[order]
    (tmp_path / "y.csv").write_text("id,file,label\n" + rows(order, names, NAMES[order]))
    np.savez(tmp_path / "y.npz", label=GIVEN[order], names=names)
    for source in ("y.csv", "y.csv:label", "y.npz"):
        given, recorded = given_labels(str(tmp_path / source), CLASSES, TRUE, FILES)
        assert given.tolist() == GIVEN.tolist() and recorded["key"] == "label"


@pytest.mark.parametrize(
    "as_column",
    [
        lambda names: names,
        lambda names: names[:, None],
        lambda names: names[None],
        lambda names: names.astype("S"),
        lambda names: names.astype("S")[:, None],
        lambda names: np.char.add(names, "  "),
    ],
    ids=["text", "(n, 1)", "(1, n)", "bytes", "bytes (n, 1)", "padded"],
)
@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_names_of_any_type_and_shape(tmp_path, as_column, suffix):
    order = np.random.default_rng(0).permutation(60)
    names = as_column(np.array(FILES)[order])
    arrays = {"path": names, "label": GIVEN[order]}
    if suffix == "npz":
        np.savez(tmp_path / "y.npz", **arrays)
    else:
        torch.save({name: array.tolist() for name, array in arrays.items()}, tmp_path / "y.pt")
    for key in ("", ":label"):
        source = f"{tmp_path / 'y'}.{suffix}{key}"
        assert given_labels(source, CLASSES, TRUE, FILES)[0].tolist() == GIVEN.tolist()


@pytest.mark.parametrize("names", [lambda ids: ids, lambda ids: ids.astype(str)])
def test_numbers_that_are_names_of_images(tmp_path, names):
    ids = 397_133 + 7 * np.arange(60)
    files = [f"data/{CLASSES[n % 3]}/{id_:012d}.jpg" for n, id_ in enumerate(ids)]
    order = np.random.default_rng(0).permutation(60)
    np.savez(tmp_path / "y.npz", image=names(ids[order]), label=GIVEN[order])
    given, _ = given_labels(str(tmp_path / "y.npz"), CLASSES, TRUE, files)
    assert given.tolist() == GIVEN.tolist()
    np.savez(tmp_path / "y.npz", image=names(ids[order] + 7), label=GIVEN[order])
    with pytest.raises(MemtoolError, match="'image' names images that are not .* 1 of 60, such as"):
        given_labels(f"{tmp_path / 'y.npz'}:label", CLASSES, TRUE, files)


@pytest.mark.parametrize("name", ["y.npz", "y.csv"])
@pytest.mark.parametrize("as_names", [True, False], ids=["names", "places"])
@pytest.mark.parametrize("in_order", [True, False])
def test_numbers_are_names_of_images_or_their_places(tmp_path, name, as_names, in_order):
    """The true labels tell which, in any order of the rows."""
    files = [f"data/{CLASSES[n % 3]}/{59 - n}.jpg" for n in range(60)]
    ids = 59 - np.arange(60) if as_names else np.arange(60)
    order = np.argsort(ids) if in_order else np.random.default_rng(0).permutation(60)
    np.savez(tmp_path / "y.npz", id=ids[order], label=GIVEN[order])
    (tmp_path / "y.csv").write_text("id,label\n" + rows(ids[order], GIVEN[order]))
    given, _ = given_labels(str(tmp_path / name), CLASSES, TRUE, files)
    assert given.tolist() == GIVEN.tolist()


@pytest.mark.parametrize("name", ["y.npz", "y.csv"])
def test_numbers_that_may_be_names_or_places_are_refused(tmp_path, name):
    """Within a class, every order agrees with the true labels equally often."""
    true = np.sort(TRUE)
    files = sorted(f"{CLASSES[label]}/{n}.jpg" for n, label in enumerate(true))
    given = np.where(np.arange(60) == 3, 1, true)
    np.savez(tmp_path / "y.npz", id=np.arange(60), label=given)
    (tmp_path / "y.csv").write_text("id,label\n" + rows(range(60), given))
    with pytest.raises(MemtoolError, match="its 'id' may number the examples .* whole paths"):
        given_labels(f"{tmp_path / name}:label", CLASSES, true, files)


@pytest.mark.parametrize("key", ["", ":given"])
def test_labels_are_no_folders_of_the_images_that_a_column_names(tmp_path, key):
    """Where two pairs of labels are exchanged, these would be folders of the files, too."""
    files = [f"data/{CLASSES[n % 3]}/{n // 3}.png" for n in range(60)]
    given = TRUE.copy()
    given[[0, 1]] = 1, 0
    columns = [[file.rpartition("/")[2] for file in files], np.array(CLASSES)[given]]
    columns += [np.array(CLASSES)[TRUE]] * bool(key)
    names = "file,given,true\n" if key else "file,given\n"
    (tmp_path / "y.csv").write_text(names + rows(*columns))
    if key:
        found_, _ = given_labels(f"{tmp_path / 'y.csv'}:given", CLASSES, TRUE, files)
        assert found_.tolist() == given.tolist()
    else:
        with pytest.raises(MemtoolError, match="holds several"):
            given_labels(str(tmp_path / "y.csv"), CLASSES, TRUE, files)


def test_names_of_other_images_are_refused(tmp_path):
    (tmp_path / "y.csv").write_text("file,label\n" + rows([f"{n}.png" for n in range(60)], GIVEN))
    with pytest.raises(
        MemtoolError, match="'file' names images .* 60 of 60, such as '0.png' .one that is: data"
    ):
        given_labels(f"{tmp_path / 'y.csv'}:label", CLASSES, TRUE, FILES)


def test_labels_as_in_another_order_get_a_warning(tmp_path, caplog):
    np.save(tmp_path / "y.npy", np.random.default_rng(0).permutation(TRUE))
    given_labels(str(tmp_path / "y.npy"), CLASSES, TRUE)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "as they would in another order" in record.message
    caplog.clear()
    np.save(tmp_path / "y.npy", GIVEN)
    found(tmp_path / "y.npy")
    assert not caplog.records


@pytest.mark.parametrize(
    "array, problem",
    [
        (GIVEN[:-1], "are 59, the data set has 60 training examples"),
        (np.repeat(GIVEN, 2), "are 120, the data set has 60"),
        (GIVEN + 1, "count the classes from 1 to 3; subtract 1, they count from 0$"),
        (np.where(GIVEN == 2, 99, GIVEN), "that in row 1 .from 0. is '99'; it should be a class"),
        (np.where(GIVEN == 2, -1, GIVEN), "that in row 1 .from 0. is '-1'"),
        (np.where(GIVEN == 2, np.nan, GIVEN), "not whole numbers or names"),
        (GIVEN + 0.5, "not whole numbers or names"),
        (np.where(NAMES == "cat", "cow", NAMES), "that in row 1 .from 0. is 'cow'"),
        (np.where(NAMES == "cat", "1" * 5000, NAMES), "that in row 1 .from 0. is '111"),
        (np.full((60, 3), 1 / 3), "neither one per example nor one-hot"),
        (np.zeros((60, 2, 2)), "not one per example"),
        (GIVEN * 1j, "not whole numbers or names"),
        (GIVEN.astype(object), "is no array of numbers or of text"),
        (np.zeros(0, int), "are 0, the data set has 60"),
    ],
)
def test_what_are_no_labels_of_the_data_set_is_told(tmp_path, array, problem):
    np.save(tmp_path / "y.npy", array)
    with pytest.raises(MemtoolError, match=problem) as caught:
        found(tmp_path / "y.npy")
    assert str(caught.value).startswith(str(tmp_path / "y.npy"))


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("y.json", b"[0]", "labels are read from .npy, .npz"),
        ("y.npy", b"", "cannot be read|no array"),
        ("y.npz", b"PK\x03\x04 and no more", "cannot be read|no array"),
        ("y.pt", b"<html>", "are not loaded|cannot be read"),
        ("y.pt", pickle.dumps([0], 0), "cannot be read as labels .text that begins"),
        ("y.safetensors", b"{}", "cannot be read"),
        ("y.csv", b"", "has 0 rows, the data set has 60"),
        ("y.csv", b"\xff\xfe\x00", "cannot be read"),
        ("y.csv", rows(GIVEN[:50]).encode(), "has 50 rows"),
        ("y.csv", ("a,a\n" + rows(GIVEN, GIVEN)).encode(), "two of its columns have one name"),
        ("y.csv", ("a,b\n" + rows(GIVEN)).encode(), "has 1 cells in row 0 .from 0., not 2"),
    ],
)
def test_other_files_are_one_error(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MemtoolError, match=problem) as caught:
        found(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(MemtoolError, match="none.npy: no such file"):
        found(tmp_path / "none.npy")
    (tmp_path / "y.npy").mkdir()
    with pytest.raises(MemtoolError, match="y.npy: is a folder"):
        found(tmp_path / "y.npy")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_pickle_runs(tmp_path):
    torch.save({"labels": GIVEN, "more": Evil(tmp_path / "ran")}, tmp_path / "y.pt")
    with pytest.raises(MemtoolError, match="holds other objects than arrays"):
        found(f"{tmp_path / 'y.pt'}:labels")
    assert not (tmp_path / "ran").exists()


def test_a_name_with_a_colon_is_a_file_if_there_is_one(tmp_path):
    np.save(tmp_path / "a:b.npy", GIVEN)
    assert split_source(f"{tmp_path}/a:b.npy") == (tmp_path / "a:b.npy", None)
    nobody = "~nobody-of-that-name/x.csv"
    assert split_source(f"{nobody}:y") == (Path(nobody), "y")
    assert found(tmp_path / "a:b.npy") == ("a:b.npy", None)


def test_numbers_are_names_where_all_classes_are_called_by_numbers():
    assert numbered(np.array([1, 2]), ("1", "2", "3"), "labels").tolist() == [0, 1]
    assert numbered(np.array([0, 2]), ("1", "2", "3"), "labels").tolist() == [0, 2]
    assert numbered(np.array(["7", "1"]), ("1", "5", "7"), "labels").tolist() == [2, 0]


def test_an_archive_that_unpacks_to_absurdly_much_is_refused(tmp_path):
    path = tmp_path / "labels.npz"
    np.savez_compressed(path, labels=np.zeros(10_000_000, np.int64))
    with pytest.raises(MemtoolError, match=r"labels.npz: .*unpacks to absurdly much, 80,000,"):
        given_labels(str(path), ["a", "b"], np.zeros(10, np.int64))


def test_a_tensor_that_unpacks_to_absurdly_much_is_refused(tmp_path):
    torch.save(torch.zeros(2**24), tmp_path / "stored.pt")
    path = tmp_path / "labels.pt"
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as stored,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(MemtoolError, match=r"labels.pt: .*unpacks to absurdly much"):
        found(path)


def test_strides_of_0_make_no_gigabytes_of_labels(tmp_path):
    torch.save(torch.ones(1, dtype=torch.float64).expand(2**30), tmp_path / "labels.pt")
    with pytest.raises(MemtoolError, match="claims 1,073,741,824 numbers that it does not have"):
        found(tmp_path / "labels.pt")


@pytest.mark.parametrize("name", ["labels.npy", "labels.csv", "labels.pt", "labels.safetensors"])
def test_files_too_large_for_labels_are_refused_unread(tmp_path, name):
    with open(tmp_path / name, "wb") as file:
        file.truncate(2**42)
    with pytest.raises(MemtoolError, match=f"{name}: takes 4096.0 GiB, and labels are read"):
        found(tmp_path / name)


def test_archives_too_large_for_labels_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(label_sources, "machine_memory", lambda: 16 * 10_000)
    np.savez_compressed(tmp_path / "labels.npz", labels=np.zeros(2000, np.int64))
    with pytest.raises(
        MemtoolError, match=r"labels.npz: takes 15.8 KiB, and labels are read from at"
    ):
        found(tmp_path / "labels.npz")


@pytest.mark.parametrize("header", ["0", "label"])
@pytest.mark.parametrize("missing", [0, 20, 59])
def test_an_empty_label_is_told_and_moves_no_others(tmp_path, header, missing):
    lines = [header, *map(str, GIVEN)]
    lines[1 + missing] = '""'
    (tmp_path / "y.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(MemtoolError, match=f"that in row {missing} .from 0. is empty"):
        found(tmp_path / "y.csv")


def test_a_row_of_the_file_is_told_where_names_give_another_order(tmp_path):
    labels = [*NAMES[::-1]]
    for wrong, told in (("", "is empty"), ("cow", "is 'cow'")):
        labels[7] = wrong
        (tmp_path / "y.csv").write_text("file,label\n" + rows(FILES[::-1], labels))
        with pytest.raises(MemtoolError, match=rf"that in row 7 \(from 0\) {told}"):
            given_labels(str(tmp_path / "y.csv"), CLASSES, TRUE, FILES)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "label\n" + rows(NAMES[1:]),
            "is 'label'; .*; if it is a header, the row of an",
        ),
        ("label\n" + rows(NAMES[:-1]) + "\n\n", "is 'label'; .*; if it is a header, the row of an"),
        ("f,label\n" + rows(FILES[1:], NAMES[1:]), "1 of 60, such as 'f' .*if it is a header, the"),
    ],
)
def test_a_header_may_stand_where_a_row_is_missing(tmp_path, text, told):
    (tmp_path / "y.csv").write_text(text)
    with pytest.raises(MemtoolError, match=told):
        given_labels(str(tmp_path / "y.csv"), CLASSES, TRUE, FILES)


@pytest.mark.parametrize("header", ["0", "0,1", ",0"])
@pytest.mark.parametrize("missing", [0, 20, 59])
@pytest.mark.parametrize("empty", ["", " \t"])
def test_an_empty_line_may_be_a_label_and_moves_no_others(tmp_path, header, missing, empty):
    cells = [f"{i},{given}" if "," in header else str(given) for i, given in enumerate(GIVEN)]
    cells[missing] = f"{missing}," if header == ",0" and missing == 59 else empty
    (tmp_path / "y.csv").write_text("\n".join([header, *cells]) + "\n")
    with pytest.raises(MemtoolError, match='write "" for a label that|row 59 .from 0. is empty'):
        found(f"{tmp_path / 'y.csv'}:{header.split(',')[-1]}")


@pytest.mark.parametrize(
    "text",
    [
        "0\n\n" + rows(GIVEN[:30]) + "\n \n" + rows(GIVEN[30:]),
        rows(GIVEN) + "\n",
        rows(GIVEN, end="\r\r\n"),
        "label,\n" + rows(GIVEN, [""] * 60) + ",\n",
    ],
    ids=["with a header", "at the end", "of Windows", "of a spreadsheet"],
)
def test_empty_lines_that_are_no_labels_do_not_matter(tmp_path, text):
    (tmp_path / "y.csv").write_text(text, newline="")
    names = text.partition("\n")[0].partition(",")
    found(f"{tmp_path / 'y.csv'}:label" if names[1] else tmp_path / "y.csv")


@pytest.mark.parametrize("options", [{}, {"fmt": "%d", "header": "labels"}, {"fmt": "%.3e"}])
def test_what_numpy_writes_as_text(tmp_path, options):
    np.savetxt(tmp_path / "y.txt", GIVEN, **options)
    assert found(tmp_path / "y.txt")[0] == "y.txt"


ALIGNED = [f"{i:<6d}{given:<4d}" for i, given in enumerate(GIVEN)]
PRINTED = [f"{i:<2d} {name:>6s}" for i, name in enumerate(NAMES)]


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        (ALIGNED, "2"),
        (["idx   label", *ALIGNED], "label"),
        (["       label", *PRINTED], "label"),
        (["     true  label", *(f"{line[:3]} ant {line[3:]}" for line in PRINTED)], "label"),
        (['"label"', *(f'"{i}" "{name}"' for i, name in enumerate(NAMES, 1))], "label"),
        (['"label"', *(f'"{i}","{name}"' for i, name in enumerate(NAMES, 1))], "label"),
    ],
    ids=["no header", "header", "pandas", "two columns of pandas", "R", "R with commas"],
)
def test_columns_that_spaces_align_and_rows_with_numbers(tmp_path, lines, key):
    (tmp_path / "y.txt").write_text("\n".join(lines) + "\n")
    assert found(f"{tmp_path / 'y.txt'}:{key}") == ("y.txt", key)


def test_numbers_of_any_width_that_numpy_aligns(tmp_path):
    np.savetxt(tmp_path / "y.txt", np.stack([np.arange(60), GIVEN], 1), fmt="%4d %2d")
    assert found(tmp_path / "y.txt") == ("y.txt", "2")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("", ["sea lion", "wolf", "red fox"]),
        ("label\n", ["sea lion", "wolf", "red fox"]),
        ("given labels\n", ["sea lion", "wolf", "red fox"]),
        ("label\n", ["sea lion", "grey wolf", "red fox"]),
        ("", ["sea lion", "grey wolf", "red fox"]),
        ("# label\n", ["# one", "# two", "three"]),
        ("", ["# one", "# two", "three"]),
        ("", ["tench, Tinca", "goldfish, Carassius", "eel, Anguilla"]),
    ],
)
def test_names_of_several_words_are_one_column(tmp_path, header, words):
    (tmp_path / "y.txt").write_text(header + rows(np.array(words)[GIVEN]))
    given, _ = given_labels(str(tmp_path / "y.txt"), words, TRUE)
    assert given.tolist() == GIVEN.tolist()


def test_a_column_more_than_names_that_numbers_nothing_is_refused(tmp_path):
    (tmp_path / "y.csv").write_text("given,true\n" + rows(GIVEN, TRUE, [""] * 60))
    with pytest.raises(MemtoolError, match="has 3 cells in row 0 .from 0., not 2"):
        found(f"{tmp_path / 'y.csv'}:given")


def test_a_header_of_several_words(tmp_path):
    (tmp_path / "y.csv").write_text("noisy labels\n" + rows(GIVEN))
    assert found(tmp_path / "y.csv") == ("y.csv", "noisy labels")


@pytest.mark.parametrize("empty", ["\n", " \t\r\n"])
@pytest.mark.parametrize("end", ["", "and more"])
def test_many_empty_lines_take_no_time(tmp_path, empty, end):
    (tmp_path / "y.csv").write_text("label\n" + rows(GIVEN) + empty * 20_000 + end, newline="")
    started = time.process_time()
    if end:
        with pytest.raises(MemtoolError, match="rows, the data set has 60"):
            found(tmp_path / "y.csv")
    else:
        assert found(tmp_path / "y.csv") == ("y.csv", "label")
    assert time.process_time() - started < 2  # it took half a minute, by a pattern


@pytest.mark.parametrize(
    ("classes", "labels", "numbers"),
    [
        (["1.0", "2.0", "3.0"], ["1.0", "2.0", "2.0"], [0, 1, 1]),
        (["1.0", "2.0", "3.0"], ["1", "2", "2"], [0, 1, 1]),
        (["1.0", "2.0", "3.0"], [1, 3, 2], [0, 2, 1]),
        (["1.0", "2.0", "3.0"], ["0.0", "1.0", "2.0"], [0, 1, 2]),
        (["0.5", "1.0", "1.5"], ["1.5", "0.5", "1.0"], [2, 0, 1]),
        (["01", "02", "03"], ["1", "2", "2"], [0, 1, 1]),
        (["1", "1.0", "2"], ["1.0", "1", "2"], [1, 0, 2]),
        (["v1.0", "v2.0"], ["1.0", "0.0"], [1, 0]),
    ],
)
def test_classes_that_are_numbers_however_they_are_written(tmp_path, classes, labels, numbers):
    assert numbered(np.array(labels), classes, "labels").tolist() == numbers
    (tmp_path / "y.csv").write_text(rows(labels))
    given, _ = given_labels(str(tmp_path / "y.csv"), classes, np.array(numbers))
    assert given.tolist() == numbers


OLD = {"_use_new_zipfile_serialization": False}  # as PyTorch wrote before 1.6


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda file: pickle.dump(GIVEN, file, 2), "is of pickle.dump, not of torch.save"),
        (lambda file: pickle.dump(GIVEN.tolist(), file, 2), "is of pickle.dump, not of torch.save"),
        (lambda file: pickle.dump(GIVEN, file, 4), "is of pickle.dump, not of torch.save"),
        (lambda file: torch.save(GIVEN, file, pickle_protocol=3), "with pickle_protocol=3"),
        (lambda file: torch.save(GIVEN, file, pickle_protocol=5), "with pickle_protocol=5"),
        (lambda file: torch.save({"y": time.localtime()}, file), "holds other objects than arrays"),
        (lambda file: torch.save(time.localtime(), file, **OLD), "holds other objects than arrays"),
    ],
)
def test_a_pickle_that_is_not_loaded_says_what_it_is(tmp_path, write, told):
    with open(tmp_path / "y.pt", "wb") as file:
        write(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MemtoolError, match=rf"y.pt: .*{told}.*; save the labels alone: numpy"):
            found(tmp_path / "y.pt")


def whole_pickles() -> dict[str, bytes]:
    """Old files of torch.save, and one of pickle.dump."""
    contents: dict[str, object] = {
        "tensors": {"y": torch.from_numpy(GIVEN), "more": torch.zeros(99)},
        "arrays": {"y": GIVEN},
        "list": GIVEN.tolist(),
    }
    found = {"dumped": pickle.dumps(GIVEN.tolist(), 4)}
    for name, content in contents.items():
        torch.save(content, file := io.BytesIO(), **OLD)
        found[name] = file.getvalue()
    return found


@pytest.mark.parametrize("whole", whole_pickles().values(), ids=whole_pickles())
def test_a_pickle_that_ends_too_early_is_cut_short(tmp_path, whole):
    path = tmp_path / "y.pt"
    for length in {*range(9, len(whole) - 1, 29), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(MemtoolError, match=r"y.pt: is cut short; download or copy it again$"):
            found(path)


def test_tensors_of_another_protocol_are_loaded_without_a_warning(tmp_path):
    torch.save(torch.from_numpy(GIVEN), tmp_path / "y.pt", pickle_protocol=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found(tmp_path / "y.pt") == ("y.pt", None)


DIGITS = [*map(str, range(10))]


@pytest.mark.parametrize("classes", [DIGITS, DIGITS[:5]])
def test_of_classes_that_are_called_by_digits_the_last_number_may_be_the_first(classes):
    count = len(classes)
    for labels in (np.arange(count) + 1, (np.arange(count) + 1).astype(str)):
        with pytest.raises(MemtoolError) as caught:
            numbered(labels, classes, "y.mat: its labels")
        assert f"subtract 1, they count from 0, or, if {count} means class 0" in str(caught.value)
        assert f"take labels % {count}" in str(caught.value)


NFC, NFD = (
    tuple(normalize(form, name) for name in ("caf\u00e9", "noir caf\u00e9", "tea"))
    for form in ("NFC", "NFD")
)


@pytest.mark.parametrize(("classes", "called"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
@pytest.mark.parametrize("header", ["", "label\n"])
def test_accents_may_be_encoded_in_two_ways(tmp_path, classes, called, header):
    (tmp_path / "y.txt").write_text(header + rows(np.array(called)[GIVEN]))
    np.save(tmp_path / "y.npy", np.array(called)[GIVEN])
    for name in ("y.txt", "y.npy"):
        given, _ = given_labels(str(tmp_path / name), classes, TRUE)
        assert given.tolist() == GIVEN.tolist()
    files = [f"data/{classes[n % 3]}/{classes[0]}{n}.jpg" for n in range(60)]
    names = [f"{called[0]}{n}.jpg" for n in range(60)]
    (tmp_path / "y.csv").write_text("file,label\n" + rows(names[::-1], GIVEN[::-1]))
    assert (
        given_labels(f"{tmp_path / 'y.csv'}:label", classes, TRUE, files)[0].tolist()
        == GIVEN.tolist()
    )


NUMBERED = [*enumerate(NAMES)]


@pytest.mark.parametrize(
    "lines",
    [
        [*NAMES, "cat"],
        [*GIVEN, 2],
        [*np.roll(GIVEN, -1), 2],
        [f"{n},{name}" for n, name in [*NUMBERED, (60, "cat")]],
        [f"{n},{name}" for n, name in [*NUMBERED, (60, "cat")][::-1]],
        [f"{n},{given}" for n, given in enumerate([*GIVEN, 2], 1)],
        [f"{n},{given}" for n, given in enumerate([1, *GIVEN[1:], 2])],
        [f"row{n},{given}" for n, given in enumerate([*GIVEN, 2])],
        [f"{given},{given}" for given in [*GIVEN, 2]],
        [f"{file},{name}" for file, name in zip([*FILES, "x.png"], [*NAMES, "cat"], strict=True)],
        [f"{NAMES[0]},?", *(f"{name},0.5" for name in [*NAMES[1:], "cat"])],
        [f"{GIVEN[0]},?", *(f"{given},0.5" for given in [*GIVEN[1:], 2])],
    ],
)
def test_a_label_too_many_is_no_header(tmp_path, lines):
    (tmp_path / "y.txt").write_text("\n".join(map(str, lines)) + "\n")
    with pytest.raises(MemtoolError, match="has 61 rows, .*the first row, .*, has a label, and is"):
        found(tmp_path / "y.txt")


@pytest.mark.parametrize(
    ("header", "columns", "key"),
    [
        ("0", [GIVEN], "0"),
        ("0,1", [TRUE, GIVEN], "1"),
        ("0,1", [range(60), GIVEN], "1"),
        (",0", [range(60), GIVEN], "0"),
        ("file,0", [FILES, GIVEN], "0"),
        ("ant,bee,given", [TRUE == 0, TRUE == 1, NAMES], "given"),
        ("2024", [GIVEN], "2024"),
        ("id,1", [range(60), GIVEN], "1"),
        ("0,1", [range(1, 61), GIVEN], "1"),
        ("0,1", [range(1, 61), NAMES], "1"),
        ("id,1,0", [[f"row{n}" for n in range(60)], GIVEN, TRUE], "1"),
    ],
)
def test_a_header_may_look_like_labels(tmp_path, header, columns, key):
    cells = [[int(cell) if isinstance(cell, np.bool_) else cell for cell in its] for its in columns]
    (tmp_path / "y.csv").write_text(header + "\n" + rows(*cells))
    assert found(f"{tmp_path / 'y.csv'}:{key}")[1] == key


@pytest.mark.parametrize("seed", range(4))
def test_a_number_above_labels_in_another_order_is_the_header_of_names(tmp_path, seed):
    order = np.random.default_rng(seed).permutation(60)
    (tmp_path / "y.csv").write_text("file,0\n" + rows(np.array(FILES)[order], GIVEN[order]))
    given, _ = given_labels(str(tmp_path / "y.csv"), CLASSES, TRUE, FILES)
    assert given.tolist() == GIVEN.tolist()


@pytest.mark.parametrize("name", ["y.csv", "y.pt"])
@pytest.mark.parametrize("where", ["comment", "label"])
def test_a_long_cell_takes_no_more_memory_than_it_has(tmp_path, name, where):
    columns = {"label": [*map(str, GIVEN)], "comment": [""] * 60}
    columns[where][7] = "x" * 100_000
    if name == "y.csv":
        (tmp_path / name).write_text("label,comment\n" + rows(*columns.values()))
    else:
        torch.save(columns, tmp_path / name)
    found_or_not = pytest.raises(MemtoolError, match="that in row 7 .from 0. is 'xxx")
    tracemalloc.start()
    with found_or_not if where == "label" else nullcontext():
        found(f"{tmp_path / name}:label")
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20  # as text, 24 MB
    tracemalloc.stop()


BESIDE = {
    "ragged": [[1], [1, 2]],
    "tensors": [torch.tensor([0.1]), torch.tensor([0.1, 0.2])],
    "parameters": [torch.nn.Parameter(torch.ones(2))],
    "gaps": ["a.png", None],
    "mixed": [1, "a"],
    "sparse": torch.eye(3).to_sparse(),
    "claimed": torch.ones(1).expand(2**30),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_cannot_be_read_is_left_aside_where_something_else_is_asked_for(
    tmp_path, caplog, name
):
    path = tmp_path / "y.pt"
    torch.save({"label": torch.from_numpy(GIVEN), name: BESIDE[name]}, path)
    assert found(f"{path}:label") == ("y.pt", "label")
    (told,) = caplog.messages
    assert told.startswith(f"{path}: its {name!r} cannot be read, and is left aside (")
    with pytest.raises(
        MemtoolError, match=f"its {name!r} cannot be read as labels .*to take others"
    ):
        found(path)
    with pytest.raises(MemtoolError, match=f"its {name!r} cannot be read as labels .*numpy.save"):
        found(f"{path}:{name}")


@pytest.mark.parametrize(
    "more", [{"info": "x"}, {"epoch": np.array(3)}, {"epoch": torch.tensor(3)}, {"none": []}]
)
def test_what_cannot_be_labels_does_not_matter(tmp_path, caplog, more):
    torch.save(
        {"label": torch.nn.Parameter(torch.from_numpy(GIVEN) * 1.0), **more}, tmp_path / "y.pt"
    )
    assert found(tmp_path / "y.pt") == ("y.pt", "label") and not caplog.messages


def test_objects_in_npz_are_left_aside_or_told_the_way_out(tmp_path, caplog):
    path = tmp_path / "y.npz"
    np.savez(path, label=GIVEN, meta=np.array({"seed": 1}, object), names=NAMES.astype(object))
    assert found(f"{path}:label") == ("y.npz", "label")
    assert [message.split()[2] for message in caplog.messages] == ["'meta'", "'names'"]
    assert "is left aside (it is an array of Python objects, which is never" in caplog.text
    np.savez(path, label=NAMES.astype(object))
    for source in (path, f"{path}:label"):
        with pytest.raises(MemtoolError, match=r"'label' cannot .* save text as array.astype.str."):
            found(source)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", "not an array")
    with pytest.raises(MemtoolError, match="'label' cannot be read"):
        found(path)


@pytest.mark.parametrize("type_", [torch.bfloat16, torch.float8_e4m3fn])
def test_types_that_numpy_does_not_have_are_left_aside(tmp_path, caplog, type_):
    path = tmp_path / "y.safetensors"
    tensors = {"label": torch.from_numpy(GIVEN), "logits": torch.zeros(60, 3).to(type_)}
    safetensors.torch.save_file(tensors, path)
    assert found(f"{path}:label") == ("y.safetensors", "label")
    assert "its 'logits' cannot be read, and is left aside (it is of a type that" in caplog.text
    with pytest.raises(MemtoolError, match="its 'logits' cannot be read as labels"):
        found(f"{path}:logits")


CHOSEN = np.random.default_rng(0).random(60) < 0.7
ALL = {"chosen": CHOSEN, "classes": CLASSES, "true": TRUE[CHOSEN]}


@pytest.mark.parametrize(
    ("name", "key"),
    [("y.npy", ""), ("y.npz", ":label"), ("y.csv", ":label"), ("y.txt", "")],
)
def test_labels_of_all_examples_serve_those_that_were_chosen(tmp_path, caplog, name, key):
    caplog.set_level("INFO", logger="memtool")
    np.save(tmp_path / "y.npy", GIVEN)
    np.savez(tmp_path / "y.npz", index=np.arange(60), label=GIVEN)
    (tmp_path / "y.csv").write_text("id,label\n" + rows(range(60), NAMES))
    (tmp_path / "y.txt").write_text(rows(NAMES))
    given, _ = given_labels(f"{tmp_path / name}{key}", **ALL)
    assert given.tolist() == GIVEN[CHOSEN].tolist()
    assert f"has labels of 60 examples, of which {CHOSEN.sum()} are chosen" in caplog.text
    np.save(tmp_path / "y.npy", GIVEN[CHOSEN])
    assert given_labels(str(tmp_path / "y.npy"), **ALL)[0].tolist() == GIVEN[CHOSEN].tolist()
    np.save(tmp_path / "y.npy", GIVEN[:-1])
    with pytest.raises(MemtoolError, match=f"are 59, .* {CHOSEN.sum()} training .* chosen from 60"):
        given_labels(str(tmp_path / "y.npy"), **ALL)


def test_names_of_all_images_serve_those_that_were_chosen(tmp_path):
    order = np.random.default_rng(1).permutation(60)
    (tmp_path / "y.csv").write_text("file,label\n" + rows(np.array(FILES)[order], NAMES[order]))
    files = [file for file, is_chosen in zip(FILES, CHOSEN, strict=True) if is_chosen]
    given, _ = given_labels(str(tmp_path / "y.csv"), files=files, **ALL)
    assert given.tolist() == GIVEN[CHOSEN].tolist()


@pytest.mark.parametrize("count", [59, 58])
@pytest.mark.parametrize("header", ["", "label\n", "0\n"])
def test_one_more_row_is_a_header_or_an_example_that_was_not_chosen(tmp_path, header, count):
    chosen = np.arange(60) < count
    (tmp_path / "y.txt").write_text(header + rows(GIVEN))
    given, _ = given_labels(str(tmp_path / "y.txt"), CLASSES, TRUE[chosen], chosen=chosen)
    assert given.tolist() == GIVEN[chosen].tolist()
    (tmp_path / "y.txt").write_text(header + rows(GIVEN[chosen]))
    given, _ = given_labels(str(tmp_path / "y.txt"), CLASSES, TRUE[chosen], chosen=chosen)
    assert given.tolist() == GIVEN[chosen].tolist()


@pytest.mark.parametrize("left_out", [0, 3, 59])
def test_the_first_of_all_labels_is_no_header(tmp_path, left_out):
    """Without a header, there are as many rows as with one above the labels of those chosen."""
    chosen = np.arange(60) != left_out
    labels = np.roll(GIVEN, 1)
    for first in (0, 1, 2):
        labels[0] = first
        (tmp_path / "y.txt").write_text(rows(labels))
        given, _ = given_labels(
            str(tmp_path / "y.txt"), CLASSES, np.roll(TRUE, 1)[chosen], chosen=chosen
        )
        assert given.tolist() == labels[chosen].tolist()
