"""Data sets, loaded: splits, samples, statistics, fingerprints."""

import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from memtool import data


def test_samples_are_test_images_in_proportion(refused) -> None:
    full, some = data.load("digits"), data.load("digits?samples=100")
    assert (len(some.train), len(some.test)) == (0, 100)
    counts = np.bincount(full.test.labels)
    assert np.abs(np.bincount(some.test.labels) - counts / 5).max() < 1
    assert len(data.load("digits?samples=5000").test) == 500
    assert "leave it out" in refused("digits?samples=5", training=True)


def test_fewer_training_images_are_another_data_set() -> None:
    full, some = data.load("digits"), data.load("digits?samples_train=100", training=True)
    assert (len(some.train), len(some.test)) == (100, 500)
    assert some.fingerprint != full.fingerprint
    assert len(data.load("digits?samples_train=100&samples=9").test) == 9


def test_mean_and_std_are_those_of_the_training_images(refused) -> None:
    digits = data.load("digits")
    pixels = digits.train.images / 255
    assert digits.mean == pytest.approx([pixels.mean()])
    assert digits.std == pytest.approx([pixels.std()])
    fixed = data.load("digits?mean=0.25&std=0.5")
    assert (fixed.mean, fixed.std) == ([0.25], [0.5])
    assert "3 values" in refused("digits?mean=0.5,0.5,0.5")


def test_a_constant_channel_has_a_standard_deviation_of_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.full((4, 5, 5), 7, np.uint8), labels=np.arange(4))
    constant = data.load(f"{tmp_path}/x.npz")
    assert constant.std == [1.0]
    assert constant.mean == pytest.approx([7 / 255])


def test_named_images_are_resized_too() -> None:
    large = data.load("digits?image_size=16&samples=20")
    assert large.test.images.shape == (20, 1, 16, 16)


def test_normalize_gives_mean_zero_and_deviation_one() -> None:
    digits = data.load("digits")
    result = data.normalize(torch.from_numpy(digits.train.images), digits.mean, digits.std)
    assert result.mean().item() == pytest.approx(0, abs=1e-5)
    assert result.std().item() == pytest.approx(1, abs=1e-3)


def test_folders_in_any_place_and_of_either_name_have_one_fingerprint(
    tmp_path: Path, picture, write
) -> None:
    for root, test in (("a", "test"), ("b", "val")):
        write(tmp_path / root, "train", 3)
        write(tmp_path / root, test, 2)
    os.utime(tmp_path / "a/train/ant/0.png", (0, 0))
    first, second = (data.load(f"folder:{tmp_path / root}") for root in "ab")
    assert (len(first.train), len(first.test), first.classes) == (6, 4, ("ant", "bee"))
    assert first.fingerprint == second.fingerprint
    picture(4, 4, 77).save(tmp_path / "b/val/bee/1.png")
    assert data.load(f"folder:{tmp_path / 'b'}").fingerprint != first.fingerprint


def test_a_flat_folder_is_for_testing_unless_it_is_split(tmp_path: Path, write, refused) -> None:
    write(tmp_path, "val", 10)
    spec = f"folder:{tmp_path / 'val'}"
    flat = data.load(spec)
    assert (len(flat.train), len(flat.test)) == (0, 20)
    assert flat.train.images.shape == (0, 3, 4, 4)
    assert "--split-at" in refused(spec, training=True)
    split = data.load(f"{spec}?split_at=80%", training=True)
    assert np.bincount(split.train.labels).tolist() == [8, 8]
    together = np.concatenate([split.train.images, split.test.images])
    assert sorted(map(bytes, together)) == sorted(map(bytes, flat.test.images))
    assert split.fingerprint == data.load(f"{spec}?split_at=16").fingerprint
    assert "leave out split_at" in refused("digits?split_at=80%")
    assert "leaves 20 to train on and 0" in refused(f"{spec}?split_at=20")


def test_progress_comes_to_the_number_of_images(tmp_path: Path, write) -> None:
    opened, steps = [], []

    def progress(description: str, total: int):
        opened.append((description, total))
        return nullcontext(steps.append)

    write(tmp_path, "", 150)
    data.load(f"folder:{tmp_path}", progress=progress)
    assert opened == [(f"reading folder:{tmp_path}", 300)]
    assert sum(steps) == 300
    assert max(steps) <= 64
    data.load("digits?image_size=9&samples=100", progress=progress)
    assert opened[1:] == [("resizing digits?image_size=9&samples=100", 100)]
    assert sum(steps) == 400


def test_a_class_that_is_left_without_training_images_is_told(
    tmp_path: Path, saved, caplog
) -> None:
    images, labels = np.zeros((12, 4, 4), np.uint8), np.repeat([0, 1, 2], [9, 2, 1])
    whole = saved(tmp_path / "x.npz", images=images, labels=labels)
    names = {
        f"{part}_{name}": array
        for part in ("train", "test")
        for name, array in (("images", images), ("labels", labels))
    }
    parts = saved(tmp_path / "y.npz", **names)
    for spec in (f"{whole}?split_at=3", f"{parts}?samples_train=3"):
        caplog.clear()
        data.load(spec)
        (told,) = caplog.messages
        assert told.startswith(f"{spec}: class '2' occurs among the test labels alone; ")
    data.load(f"{parts}?samples_train=1")
    assert "class '1' occurs among the test labels alone (one of 2 such classes)" in caplog.text


@pytest.mark.parametrize(
    ("spec", "whole"),
    [
        ("digits", "digits"),
        ("digits?samples_train=50", "digits"),
        ("FILE?split_at=60%", "FILE"),
        ("FILE?split_at=60%&samples_train=20", "FILE"),
    ],
)
def test_training_images_are_known_among_those_that_they_were_chosen_from(
    tmp_path: Path, saved, spec: str, whole: str
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    file = str(saved(tmp_path / "x.npz", images=images, labels=np.arange(60) % 3))
    part, all_ = (data.load(name.replace("FILE", file)) for name in (spec, whole))
    source = all_.train if len(all_.train) else all_.test
    assert part.chosen is not None and len(part.chosen) == len(source)
    np.testing.assert_array_equal(part.train.images, source.images[part.chosen])
    np.testing.assert_array_equal(part.train.labels, source.labels[part.chosen])
