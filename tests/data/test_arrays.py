"""Arrays in files: layouts, types, and files that are ambiguous, broken or hostile."""

import os
import tracemalloc
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from memtool import MemtoolError, data

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 4), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize(
    "pixels",
    [
        PIXELS,
        PIXELS.transpose(0, 2, 3, 1),
        (PIXELS / 255).astype(np.float32),
        PIXELS.astype(np.float64),
        PIXELS.astype(np.int32),
    ],
    ids=["nchw", "nhwc", "float in [0, 1]", "float in [0, 255]", "int32"],
)
def test_arrays_of_each_layout_and_type(
    tmp_path: Path, pixels: np.ndarray, suffix: str, saved
) -> None:
    found = data.load(str(saved(tmp_path / f"x.{suffix}", images=pixels, labels=LABELS)))
    assert (found.test.images == PIXELS).all()
    assert found.test.images.flags.writeable and found.test.images.flags.c_contiguous
    assert (found.test.labels == LABELS).all()
    assert (len(found.train), found.classes) == (0, ("0", "1", "2"))


def test_arrays_that_are_split(tmp_path: Path, saved) -> None:
    path = saved(
        tmp_path / "x.npz",
        train_images=PIXELS[:, 0],
        train_labels=LABELS.astype(np.uint8)[:, None],
        test_images=PIXELS[:2, 0],
        test_labels=LABELS[:2],
    )
    found = data.load(str(path), training=True)
    assert found.train.images.shape == (6, 1, 5, 4)
    assert (found.test.images[:, 0] == PIXELS[:2, 0]).all()
    assert found.train.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("pixels", "labels", "told"),
    [
        (PIXELS[..., :3], LABELS, "may be (n, c, h, w) or (n, h, w, c)"),
        (PIXELS[:, :2], LABELS, "is neither"),
        (PIXELS[0, 0], LABELS, "5 images, 6 labels"),
        (PIXELS[:, 0, 0, 0], LABELS, "is neither"),
        (PIXELS - np.float32(1), LABELS, "values from -1"),
        (PIXELS * np.float32(np.nan), LABELS, "values from nan"),
        (PIXELS / 100, LABELS, "fractions"),
        (PIXELS, LABELS[:5], "6 images, 5 labels"),
        (PIXELS[:0], LABELS[:0], "0 images"),
    ],
)
def test_arrays_that_could_mean_anything_are_refused(
    tmp_path: Path, pixels: np.ndarray, labels: np.ndarray, told: str, refused, saved
) -> None:
    path = saved(tmp_path / "x.npz", images=pixels, labels=labels)
    assert told in refused(path) and str(path) in refused(path)


def test_files_without_the_arrays_or_of_another_kind_are_refused(
    tmp_path: Path, refused, saved
) -> None:
    assert "no such file" in refused(tmp_path / "x.npz")
    assert "no such file" in refused(tmp_path / "x.safetensors")
    assert "needs images and labels" in refused(saved(tmp_path / "x.npz", images=PIXELS))
    for suffix in ("npz", "safetensors"):
        path = tmp_path / f"broken.{suffix}"
        path.write_bytes(b"PK\x03\x04 and so on")
        assert "cannot be read" in refused(path)


def test_pickles_in_npz_are_not_opened(tmp_path: Path, refused) -> None:
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    np.savez(tmp_path / "x.npz", images=np.array([Trap()], dtype=object), labels=LABELS)
    assert "cannot be read" in refused(tmp_path / "x.npz")
    assert not (tmp_path / "trapped").exists()


def test_an_archive_that_unpacks_to_absurdly_much_is_refused_unread(
    tmp_path: Path, refused
) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=np.zeros((30_000, 1, 50, 50), np.uint8), labels=LABELS)
    tracemalloc.start()
    assert "unpacks to absurdly much, 75,0" in refused(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_arrays_larger_than_the_memory_that_is_allowed_are_refused_unread(
    tmp_path: Path, suffix: str, refused, saved
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 1, 50, 50)).astype(np.float32)
    path = saved(tmp_path / f"x.{suffix}", images=pixels, labels=np.arange(2000) % 2)
    tracemalloc.start()
    told = refused(path, memory=2**24)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert told.startswith(
        f"{path}: would take 19.1 MiB, more than --memory (16.0 MiB); allow more (--"
    )
    assert len(data.load(str(path), memory=2**25).test) == 2000


@pytest.mark.parametrize("scale", [1, 1 / 255])
def test_arrays_become_images_within_little_more_memory_than_they_take(
    tmp_path: Path, scale: float, saved
) -> None:
    """Besides the float32 that are read, their uint8, twice where they are put in order."""
    pixels = np.random.default_rng(0).integers(0, 256, (600, 3, 50, 50), np.uint8)
    floats = (pixels.transpose(0, 2, 3, 1) * scale).astype(np.float32)
    path = saved(tmp_path / "x.npz", images=floats, labels=np.arange(600) % 2)
    data.load(str(path))  # imports what it needs
    tracemalloc.start()
    found = data.load(str(path))
    assert tracemalloc.get_traced_memory()[1] < 1.8 * floats.nbytes
    tracemalloc.stop()
    assert (found.test.images == pixels).all()


def test_resized_arrays_larger_than_the_memory_that_is_allowed_are_refused(
    tmp_path: Path, refused, saved
) -> None:
    path = saved(tmp_path / "x.npz", images=PIXELS, labels=LABELS)
    told = refused(f"{path}?image_size=9000", memory=2**30)
    assert told.startswith(
        "6 images of 9000x9000 pixels: would take 1.4 GiB, more than --memory (1.0"
    )


@pytest.mark.parametrize("shape", ["(1152921504606846976, 3, 4, 4)", "(50000000000, 1, 1, 1)"])
def test_an_npz_header_may_claim_anything(tmp_path: Path, shape: str, refused) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"1234"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", content)
        archive.writestr("labels.npy", content)
    assert "cannot be read" in refused(tmp_path / "x.npz")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@settings(max_examples=100, deadline=None)
@given(drawn=st.data())
def test_damaged_files_give_one_clear_error_or_arrays(
    suffix: str, drawn: st.DataObject, saved
) -> None:
    with TemporaryDirectory() as folder:
        path = saved(Path(folder) / f"x.{suffix}", images=PIXELS, labels=LABELS)
        content = bytearray(path.read_bytes())
        where = st.integers(0, len(content) - 1)
        for position, byte in drawn.draw(st.dictionaries(where, st.integers(0, 255))).items():
            content[position] = byte
        path.write_bytes(content[: drawn.draw(st.one_of(st.just(len(content)), where))])
        try:
            found = data.load(str(path))
        except MemtoolError as error:
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 500
        else:
            assert len(found.test) == len(found.test.images) > 0


def test_a_suffix_in_capitals_is_one_too(tmp_path: Path, saved) -> None:
    path = saved(tmp_path / "x.npz", images=PIXELS, labels=LABELS).rename(tmp_path / "X.NPZ")
    assert len(data.load(str(path)).test) == len(LABELS)


@pytest.mark.parametrize("type_", [np.float16, np.float32, np.float64])
def test_floats_of_any_width_become_the_nearest_level(tmp_path: Path, type_, saved) -> None:
    floats = np.random.default_rng(0).random((4, 16, 16)).astype(type_)
    found = data.load(str(saved(tmp_path / "x.npz", images=floats, labels=np.arange(4))))
    assert (found.test.images[:, 0] == np.rint(floats.astype(np.float64) * 255)).all()


@pytest.mark.parametrize("type_", [torch.bfloat16, torch.float8_e4m3fn])
def test_types_that_numpy_does_not_have_are_refused(tmp_path: Path, refused, type_) -> None:
    labels = torch.arange(8) % 2
    save_file(
        {"images": torch.zeros(8, 4, 4).to(type_), "labels": labels}, tmp_path / "x.safetensors"
    )
    told = refused(tmp_path / "x.safetensors")
    assert "images is of type " in told and "save it as float32" in told


def test_truth_values_are_black_and_white(saved, tmp_path):
    found = data.load(str(saved(tmp_path / "x.npz", images=PIXELS > 9, labels=LABELS)))
    np.testing.assert_array_equal(np.unique(found.test.images), np.unique(255 * (PIXELS > 9)))


BLACK_AND_WHITE = PIXELS > 127
SPLIT_LABELS = {"train_labels": LABELS, "test_labels": LABELS}


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize(
    "others",
    [PIXELS, PIXELS.astype(np.int64), PIXELS.astype(np.float32), BLACK_AND_WHITE * np.float32(1)],
    ids=["uint8", "int64", "float in [0, 255]", "float in [0, 1]"],
)
def test_truth_values_are_black_and_white_beside_other_types(saved, tmp_path, suffix, others):
    for parts in (("train", "test"), ("test", "train")):
        arrays = {f"{parts[0]}_images": BLACK_AND_WHITE, f"{parts[1]}_images": others}
        found = data.load(str(saved(tmp_path / f"x.{suffix}", **arrays, **SPLIT_LABELS)))
        images = [getattr(found, part).images for part in parts]
        np.testing.assert_array_equal(images[0], 255 * BLACK_AND_WHITE)
        np.testing.assert_array_equal(images[1], others * (255 if others.max() == 1 else 1))


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        (BLACK_AND_WHITE, BLACK_AND_WHITE.astype(np.uint8), "train_images truth values"),
        (BLACK_AND_WHITE, BLACK_AND_WHITE.astype(np.int64), "train_images truth values"),
        (PIXELS, BLACK_AND_WHITE.astype(np.float32), "train_images values up to 255"),
        (PIXELS * 1.0, BLACK_AND_WHITE.astype(np.int16), "train_images values up to 255"),
        (PIXELS, BLACK_AND_WHITE.astype(np.uint8), "train_images values up to 255"),
    ],
)
def test_splits_that_end_at_1_and_at_more_are_refused(saved, refused, tmp_path, train, test, told):
    path = saved(tmp_path / "x.npz", train_images=train, test_images=test, **SPLIT_LABELS)
    assert f"test_images has only values of 0 and 1, and {told}; save all as" in refused(path)


@pytest.mark.parametrize("type_", [np.uint8, np.int64, np.float32])
def test_a_split_may_be_black(saved, tmp_path, type_):
    arrays = {"train_images": PIXELS.astype(type_), "test_images": 0 * PIXELS.astype(type_)}
    found = data.load(str(saved(tmp_path / "x.npz", **arrays, **SPLIT_LABELS)))
    assert (found.train.images == PIXELS).all() and not found.test.images.any()


def test_the_array_that_does_not_fit_the_others_is_named(saved, refused, tmp_path):
    arrays = {"train_images": PIXELS / np.float32(PIXELS.max()), "test_images": PIXELS}
    told = refused(saved(tmp_path / "x.npz", **arrays, **SPLIT_LABELS))
    assert "train_images has fractions, and test_images values up to" in told


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_file_that_is_something_else_is_told_by_its_first_bytes(tmp_path, refused, suffix):
    path = tmp_path / f"x.{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\nsize 5\n")
    assert "cannot be read (a Git LFS pointer, which stands for a file of 5 bytes" in refused(path)


def test_a_split_for_validation_serves_where_there_is_none_for_testing(
    tmp_path: Path, saved, caplog
) -> None:
    caplog.set_level("INFO", logger="memtool")
    parts = {"train": slice(3), "val": slice(3, 6), "test": slice(2, 6)}
    arrays = {
        f"{part}_{name}": array[its]
        for part, its in parts.items()
        for name, array in (("images", PIXELS), ("labels", LABELS))
    }
    whole = data.load(str(saved(tmp_path / "x.npz", **arrays)))
    assert len(whole.test) == 4
    assert "x.npz: skipped val_images, val_labels; took train_images, " in caplog.text
    caplog.clear()
    arrays = {name: array for name, array in arrays.items() if not name.startswith("test")}
    found = data.load(str(saved(tmp_path / "y.npz", **arrays)))
    assert (found.test.images == PIXELS[3:]).all() and not caplog.messages
