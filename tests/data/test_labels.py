"""Label files: what is in them, and which are refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from memtool import MemtoolError, data
from memtool.data import LabelFile, NoiseKind
from memtool.tensors import encoded, save_tensors


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture(scope="module")
def noisy(digits) -> LabelFile:
    return LabelFile.noisy(digits, NoiseKind.symmetric, ratio=0.5, seed=3)


def test_a_file_has_the_labels_and_how_they_were_drawn(tmp_path: Path, digits, noisy) -> None:
    path = tmp_path / "labels.safetensors"
    noisy.save(path)
    found = LabelFile.load(path)
    assert (found.given == noisy.given).all() and (found.true == digits.train.labels).all()
    assert found.metadata["noise"] == {"ratio": 0.5, "kind": "symmetric", "seed": 3}
    assert found.metadata["data"] == digits.metadata()
    assert found.fingerprint == noisy.fingerprint
    with safe_open(path, "numpy") as file:
        mislabelled = file.get_tensor("mislabelled")
    assert mislabelled.dtype == bool and mislabelled.sum() == round(0.5 * 1297)
    assert (mislabelled == (found.given != found.true)).all()
    found.check(path, digits)


def test_equal_labels_are_equal_files(tmp_path: Path, digits, noisy) -> None:
    again = LabelFile.noisy(digits, NoiseKind.symmetric, ratio=0.5, seed=3)
    for name, labels in (("a", noisy), ("b", again)):
        labels.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_true_labels_have_no_noise(digits) -> None:
    labels = LabelFile.true_labels(digits)
    assert not labels.mislabelled.any()
    assert labels.metadata["noise"] == {"ratio": 0.0, "kind": None, "seed": None}
    assert labels.fingerprint != LabelFile.noisy(digits, NoiseKind.uniform, 0.1, 0).fingerprint


def test_a_matrix_is_recorded(digits) -> None:
    matrix = np.roll(np.eye(10), 1, axis=1)
    labels = LabelFile.noisy(digits, NoiseKind.matrix, 1, 0, matrix)
    assert (labels.given == (labels.true + 1) % 10).all()
    assert labels.metadata["noise"]["matrix"] == matrix.tolist()


def test_labels_of_another_data_set_are_refused(noisy) -> None:
    path = Path("labels.safetensors")
    for spec in ("digits?samples=9", "digits?image_size=9"):
        with pytest.raises(MemtoolError, match="^labels.safetensors: its labels were made for.*'d"):
            noisy.check(path, data.load(spec))


def test_other_true_labels_than_those_of_the_data_set_are_refused(digits, noisy) -> None:
    other = dataclasses.replace(noisy, true=np.roll(noisy.true, 1))
    with pytest.raises(MemtoolError, match="^x.safetensors: its true labels are not"):
        other.check(Path("x.safetensors"), digits)


DATA = {"name": "x", "train": 2, "classes": ["ant", "bee"], "fingerprint": "0"}
NOISE = {"ratio": 0.5, "kind": "uniform", "seed": 0}
INT64 = np.array([0, 1])


@pytest.mark.parametrize(
    ("kind", "metadata", "arrays", "told"),
    [
        ("labels", {"data": DATA, "noise": NOISE}, {"given": INT64}, "'?true"),
        ("labels", {"data": DATA, "noise": NOISE}, {"given": INT64, "true": INT64[:1]}, "given is"),
        (
            "labels",
            {"data": DATA, "noise": NOISE},
            {"given": INT64.astype(float), "true": INT64},
            "given is float64",
        ),
        (
            "labels",
            {"data": DATA, "noise": NOISE},
            {"given": INT64, "true": np.array(0)},
            r"given is int64 \(2,\)",
        ),
        (
            "labels",
            {"data": {}, "noise": NOISE},
            {"given": INT64, "true": INT64},
            "no 'name' in 'data'",
        ),
        (
            "labels",
            {"data": DATA, "noise": NOISE},
            {"given": np.array([0, 99]), "true": INT64},
            "given has 99 for example 1, and there are 2 classes",
        ),
        (
            "labels",
            {"data": DATA, "noise": NOISE},
            {"given": INT64, "true": np.array([-1, 0])},
            "true has -1 for example 0",
        ),
        (
            "labels",
            {"data": DATA, "noise": {}},
            {"given": INT64, "true": INT64},
            "no 'ratio' in 'noise'",
        ),
        ("labels", {"data": DATA}, {"given": INT64, "true": INT64}, "no 'noise'"),
        ("other", {"data": DATA, "noise": NOISE}, {"given": INT64, "true": INT64}, "not a labels"),
    ],
    ids=[
        "no true labels",
        "fewer true labels",
        "floats",
        "no array",
        "data not named",
        "no such class",
        "a class below 0",
        "noise not named",
        "no noise",
        "another kind",
    ],
)
def test_what_is_no_label_file_is_refused(tmp_path: Path, kind, metadata, arrays, told) -> None:
    path = tmp_path / "x.safetensors"
    save_file(arrays, path, encoded(kind, metadata))
    with pytest.raises(MemtoolError, match=f"^{path}: .*{told}"):
        LabelFile.load(path)


def test_labels_of_a_type_that_numpy_does_not_have_are_refused(tmp_path: Path) -> None:
    labels = {name: torch.zeros(2, dtype=torch.bfloat16) for name in ("given", "true")}
    path = tmp_path / "x.safetensors"
    save_tensors(path, "labels", labels, {"data": DATA, "noise": NOISE})
    with pytest.raises(MemtoolError, match="x.safetensors: its labels are not int64"):
        LabelFile.load(path)


def test_labels_that_could_not_be_read_again_are_not_written(tmp_path: Path) -> None:
    labels = LabelFile.true_labels(data.load("digits?mean=1e31"))
    with pytest.raises(MemtoolError, match="no sensible 'mean' in 'data'"):
        labels.save(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_labels_of_a_data_set_that_has_changed_say_so(tmp_path: Path, saved) -> None:
    labels = np.arange(8) % 2
    spec = f"{saved(tmp_path / 'x.npz', images=np.zeros((8, 4, 4), np.uint8), labels=labels)}?"
    made = LabelFile.true_labels(data.load(f"{spec}split_at=50%"))
    saved(tmp_path / "x.npz", images=np.ones((8, 4, 4), np.uint8), labels=labels)
    with pytest.raises(MemtoolError, match="l: its data set '.*x.npz.*' has changed since .*anew"):
        made.check(Path("l"), data.load(f"{spec}split_at=50%"))
    with pytest.raises(MemtoolError, match="l: its labels were made for another data set"):
        made.check(Path("l"), data.load(f"{spec}split_at=75%"))
