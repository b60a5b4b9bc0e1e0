"""Labels as other people's arrays have them, and the classes that occur in them."""

from pathlib import Path

import numpy as np
import pytest

from memtool import MemtoolError, data
from memtool.data.classes import classes_of, values

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 4), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (LABELS + 1, "1 2 3", LABELS),
        (np.array([1, 5, 7])[LABELS], "1 5 7", LABELS),
        (np.array([7, 1, 5])[LABELS], "1 5 7", [2, 0, 1, 2, 0, 1]),
        (np.where(LABELS > 0, 1, -1), "-1 1", LABELS > 0),
        (LABELS * 10**12, "0 1000000000000 2000000000000", LABELS),
        (LABELS.astype(np.float32), "0 1 2", LABELS),
        (LABELS > 0, "0 1", LABELS > 0),
        (LABELS[:, None].astype(np.uint8), "0 1 2", LABELS),
        (LABELS[None].astype(np.uint8), "0 1 2", LABELS),
        (np.array([["cat", "ant", "bee"]])[:, LABELS], "ant bee cat", [2, 0, 1, 2, 0, 1]),
        (LABELS[None] > 0, "0 1", LABELS > 0),
        (np.array(["cat", "ant", "bee"])[LABELS], "ant bee cat", [2, 0, 1, 2, 0, 1]),
        (np.array([b"cat", b"ant", b"bee"])[LABELS], "ant bee cat", [2, 0, 1, 2, 0, 1]),
        (np.array(["1", "10", "2"])[LABELS], "1 2 10", [0, 2, 1, 0, 2, 1]),
        (np.array([" a", "a ", "b"])[LABELS], "a b", [0, 0, 1, 0, 0, 1]),
        (np.eye(3)[LABELS], "0 1 2", LABELS),
        (np.eye(3, dtype=bool)[LABELS], "0 1 2", LABELS),
        (np.eye(5, dtype=int)[[0, 2, 4, 0, 2, 4]], "0 2 4", LABELS),
    ],
)
def test_classes_are_those_that_occur_with_their_names(
    tmp_path: Path, saved, labels: np.ndarray, classes: str, expected
) -> None:
    found = data.load(str(saved(tmp_path / "x.npz", images=PIXELS, labels=labels)))
    assert found.classes == tuple(classes.split())
    assert found.test.labels.dtype == np.int64
    assert found.test.labels.tolist() == list(map(int, expected))


def test_noise_draws_no_class_that_does_not_occur(tmp_path: Path, saved, run) -> None:
    labels = np.array([1, 5, 7])[np.arange(90) % 3]
    pixels = np.zeros((90, 1, 4, 4), dtype=np.uint8)
    path = saved(tmp_path / "x.npz", images=pixels, labels=labels)
    output = tmp_path / "labels.safetensors"
    result = run("make-noisy", path, "-r", "100%", "--split-at", "60", "-o", output)
    assert result.code == 0, result.stderr
    given = data.LabelFile.load(output)
    assert set(given.given.tolist()) == {0, 1, 2}
    assert given.metadata["data"]["classes"] == ["1", "5", "7"]


def test_what_is_taken_for_what_is_told(tmp_path: Path, saved, caplog) -> None:
    caplog.set_level("INFO", logger="memtool")
    data.load(str(saved(tmp_path / "a.npz", images=PIXELS, labels=LABELS)))
    assert not caplog.messages
    data.load(str(saved(tmp_path / "b.npz", images=PIXELS, labels=LABELS + 1)))
    assert "labels are 1, 2, 3: 3 classes, of which these are the names" in caplog.text
    data.load(str(saved(tmp_path / "c.npz", images=PIXELS, labels=np.eye(3)[LABELS])))
    assert "labels (6, 3) are one-hot" in caplog.text


def test_classes_are_those_of_both_splits(tmp_path: Path, saved, caplog) -> None:
    arrays = {"train_images": PIXELS, "test_images": PIXELS}
    labels = {"train_labels": LABELS + 4, "test_labels": LABELS + 5}
    found = data.load(str(saved(tmp_path / "x.npz", **arrays, **labels)))
    assert found.classes == ("4", "5", "6", "7")
    assert found.test.labels.tolist() == (LABELS + 1).tolist()
    assert "class '7' occurs among the test labels alone" in caplog.text


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (LABELS - 1, "go from -1 to 1; classes are not negative"),
        (LABELS / 2, "not whole numbers or names"),
        (np.where(LABELS, LABELS, np.nan), "not whole numbers or names"),
        (LABELS.astype(np.uint64) + 2**63, "not whole numbers or names"),
        (LABELS.astype("M8[D]"), "not whole numbers or names"),
        (LABELS[:, None, None], "not one per example"),
        (np.array(3), "not one per example"),
        (np.full((6, 3), 1 / 3), "of soft labels, save the most likely ones"),
        (np.ones((6, 3)), "row 0 has 3 ones; one class per example"),
        (np.zeros((6, 3)), "row 0 has 0 ones"),
        (np.array(["", "a", "b"])[LABELS], "that in row 0 (from 0) is empty"),
        (np.array([b"\xe4"] * 6), "not UTF-8"),
        (np.array([("a", 1)] * 6, dtype=object), "never opened; save text as array.astype(str)"),
        (LABELS[:4], "6 images, 4 labels"),
    ],
)
def test_labels_that_could_mean_anything_are_refused(
    tmp_path: Path, saved, refused, labels: np.ndarray, told: str
) -> None:
    assert told in refused(saved(tmp_path / "x.npz", images=PIXELS, labels=labels))


def test_numbers_and_names_do_not_mix() -> None:
    with pytest.raises(MemtoolError, match="x are numbers in one part and names in another"):
        classes_of([LABELS, values(np.array(["1"]), "y")], "x")


def test_names_that_look_alike_are_refused() -> None:
    parts = [np.array(["caf\u00e9", "tea"]), np.array(["cafe\u0301"])]
    with pytest.raises(MemtoolError, match="x: 'caf\u00e9' is there in two encodings of its acc"):
        classes_of(parts, "x")
    assert classes_of(parts[1:], "x")[0] == ("cafe\u0301",)


def test_absurdly_many_classes_are_refused() -> None:
    with pytest.raises(MemtoolError, match="200000 different values"):
        classes_of([np.arange(200_000)], "x")
