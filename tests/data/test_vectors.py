"""Vectors, (n, d), for networks on vectors: as data sets, and through every command."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from memtool import MemtoolError, data

GENERATOR = np.random.default_rng(0)
LABELS = np.arange(60) % 3
VECTORS = (GENERATOR.normal(size=(3, 8)) * 3)[LABELS] + GENERATOR.normal(size=(60, 8))
VECTORS *= 10.0 ** np.arange(-4, 4)  # no two features of one scale

MLP = """
from torch import nn

def mlp(in_features, num_classes, width=16):
    return nn.Sequential(
        nn.Linear(in_features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, num_classes),
    )
"""


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("name", ["images", "features"])
def test_vectors_are_float32_and_not_quantized(
    tmp_path: Path, saved, name: str, suffix: str
) -> None:
    arrays = {
        f"train_{name}": VECTORS[:40],
        "train_labels": LABELS[:40],
        f"test_{name}": VECTORS[40:],
        "test_labels": LABELS[40:],
    }
    found = data.load(str(saved(tmp_path / f"x.{suffix}", **arrays)), training=True)
    assert found.image_shape == (8,) and found.metadata()["image_shape"] == [8]
    assert found.train.images.dtype == np.float32
    assert (found.test.images == VECTORS[40:].astype(np.float32)).all()
    np.testing.assert_allclose(found.mean, VECTORS[:40].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.std, VECTORS[:40].std(axis=0), rtol=1e-6)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float32])
def test_vectors_of_any_type(tmp_path: Path, saved, dtype) -> None:
    vectors = (GENERATOR.normal(size=(60, 5)) * 20).astype(dtype)
    found = data.load(str(saved(tmp_path / "x.npz", features=vectors, labels=LABELS)))
    assert (found.test.images == vectors).all()


@pytest.mark.parametrize("constant", [0.1, 1e30, -7e-20])
def test_a_constant_feature_has_deviation_1(tmp_path: Path, saved, constant: float) -> None:
    vectors = np.c_[VECTORS, np.full(60, constant)]
    found = data.load(str(saved(tmp_path / "x.npz", features=vectors, labels=LABELS)))
    assert found.std[-1] == 1
    normalized = data.normalize(torch.from_numpy(found.test.images), found.mean, found.std)
    assert (normalized[:, -1] == 0).all()


def test_a_constant_channel_has_deviation_1(tmp_path: Path, saved) -> None:
    for value in range(1, 256, 2):
        images = np.full((3, 1, 7, 9), value, dtype=np.uint8)
        path = saved(tmp_path / "x.npz", images=images, labels=LABELS[:3])
        assert data.load(str(path)).std == [1.0]


def test_normalized_vectors_have_mean_0_and_deviation_1(tmp_path: Path, saved) -> None:
    found = data.load(str(saved(tmp_path / "x.npz", features=VECTORS, labels=LABELS)))
    given = torch.from_numpy(found.test.images)
    before = given.clone()
    normalized = data.normalize(given, found.mean, found.std).double()
    assert normalized.mean(dim=0).abs().max() < 1e-6
    assert (normalized.std(dim=0, correction=0) - 1).abs().max() < 1e-6
    assert torch.equal(given, before)


def test_statistics_of_another_length_are_refused() -> None:
    with pytest.raises(MemtoolError, match="vectors of 8 features cannot be .* mean of 3 numbers"):
        data.normalize(torch.zeros(2, 8), [0.0] * 3, [1.0] * 3)
    with pytest.raises(MemtoolError, match=r"\(1, 4, 4\) cannot be normalized"):
        data.normalize(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), [0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize(
    ("vectors", "told"),
    [
        (np.where(VECTORS > 0, VECTORS, np.nan), "is nan, not a number"),
        (VECTORS * 1e300, "not a number that float32 holds"),
        (VECTORS[:, 0], "not vectors of numbers (n, d)"),
        (VECTORS[:, :0], "not vectors of numbers (n, d)"),
        (VECTORS[:, :, None], "not vectors of numbers (n, d)"),
        (VECTORS.astype(str), "not vectors of numbers (n, d)"),
        (VECTORS[:9], "9 features, 60 labels"),
    ],
)
def test_what_are_no_vectors_is_refused(tmp_path: Path, saved, refused, vectors, told) -> None:
    assert told in refused(saved(tmp_path / "x.npz", features=vectors, labels=LABELS))


def test_numbers_that_float32_rounds_away_are_warned_of(tmp_path: Path, saved, caplog) -> None:
    times = np.c_[VECTORS, 1.7e9 + np.arange(60)]
    data.load(str(saved(tmp_path / "x.npz", features=times, labels=LABELS)))
    (told,) = caplog.messages
    assert "float32 rounds feature 8" in told


@pytest.mark.parametrize(
    "option", ["image_size=4", "image_size=4&crop_pct=0.9", "channels=3", "orient=true", "bits=12"]
)
def test_options_for_images_are_refused(tmp_path: Path, saved, refused, option: str) -> None:
    path = saved(tmp_path / "x.npz", features=VECTORS, labels=LABELS)
    told = refused(f"{path}?{option}")
    assert f"{option.partition('=')[0]} is for images, these are vectors" in told
    assert "mean has 2 values, the vectors 8 features" in refused(f"{path}?mean=1,2")


def test_vectors_of_two_lengths_are_refused(tmp_path: Path, saved, refused) -> None:
    arrays = {"train_images": VECTORS, "test_images": VECTORS[:, :5]}
    labels = {"train_labels": LABELS, "test_labels": LABELS}
    assert "training images are (8,), test images (5,)" in refused(
        saved(tmp_path / "x.npz", **arrays, **labels)
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, saved, run) -> Path:
    """A folder with two trained networks on vectors, a.safetensors and b.safetensors."""
    root = tmp_path_factory.mktemp("vectors")
    (root / "mlp.py").write_text(MLP)
    path = saved(root / "x.npz", features=VECTORS, labels=LABELS)
    for name, seed in (("a", 0), ("b", 1)):
        result = run(
            *("train", "--model", f"{root / 'mlp.py'}:mlp", "--data", path, "--split-at", "40"),
            *("--epochs", 15, "--batch-size", 8, "--seed", seed),
            *("--learning-rate", 0.01, "-o", root / f"{name}.safetensors"),
        )
        assert result.code == 0, result.stderr
        last = list(csv.DictReader(result.stdout.splitlines()))[-1]
        assert float(last["test_accuracy"]) > 0.9
    return root


def test_networks_on_vectors_are_compared(trained: Path, run) -> None:
    files = trained / "a.safetensors", trained / "b.safetensors"
    result = run("cka", *files, "--layers", "all", "--trust", "--format", "csv")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [row["layer"] for row in rows] == list("01234")
    assert all(0.5 < float(row["cka"]) < 1 for row in rows) and rows[0]["n"] == "20"


def test_networks_on_vectors_are_stitched(trained: Path, run) -> None:
    files = trained / "a.safetensors", trained / "b.safetensors"
    result = run("stitch", *files, "--trust", "--epochs", 1, "--save", trained / "stitched")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [row["front_layer"] for row in rows] == list("0123")
    assert all(float(row["test_accuracy"]) > 0.9 for row in rows)
    stitched = sorted((trained / "stitched").iterdir())
    assert run("cka", *stitched[:2], "--layers", "stitching", "--trust").code == 0


def test_info_of_networks_on_vectors(trained: Path, run) -> None:
    path = trained / "a.safetensors"
    (row,) = csv.DictReader(run("info", path, "--format", "csv").stdout.splitlines())
    assert (row["image_shape"], len(row["mean"].split())) == ("8", 8)
    layers = run("info", "--layers", path, "--trust", "--format", "csv").stdout
    assert [row["shape"] for row in csv.DictReader(layers.splitlines())] == ["16"] * 4 + ["3"]
    result = run("info", "--layers", path, "--trust", "--image-size", 8)
    assert "takes vectors of 8 features; leave out the size" in result.stderr


@pytest.mark.parametrize("model", ["digits-cnn", "torchvision:resnet18", "timm:resnet18"])
def test_networks_on_images_refuse_vectors(trained: Path, run, model: str) -> None:
    result = run(
        "train", "--model", model, "--data", trained / "x.npz?split_at=40", "-o", "x.safetensors"
    )
    assert (result.code, result.stdout) == (1, "")
    assert "takes images, the data set has vectors of 8 numbers" in result.stderr


def test_networks_on_vectors_refuse_images(trained: Path, run) -> None:
    files = trained / "a.safetensors", trained / "b.safetensors"
    result = run("cka", *files, "--data", "digits", "--trust")
    assert result.code == 1
    assert "takes vectors of 8 features, digits has images of (channels, height, width)" in (
        result.stderr
    )
