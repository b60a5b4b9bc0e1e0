"""Images that outgrow memory: a file of them, which is whole or absent, and says what it is."""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from memtool import MemtoolError, data
from memtool.data import images

MEMORY = 1000  # bytes, less than the images take
SIZED = "?image_size=8"  # with which no image is read to see how large they are


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("MEMTOOL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path, picture) -> Path:
    """Eight training and four test images of 10x12, in two classes, the first of each gray."""
    root = tmp_path / "photos"
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("ant", "bee")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                image = picture(10, 12, 10 * label + number, channels=3 if number else 1)
                image.save(root / part / name / f"{number}.png")
    return root


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The image files that are decoded."""
    seen: list[str] = []
    read = images.read

    def counted(path: str, options: object) -> object:
        seen.append(path)
        return read(path, options)

    monkeypatch.setattr(images, "read", counted)
    return seen


def kept(cache: Path) -> list[Path]:
    """The files in the cache, but for the locks, which are empty."""
    return [file for file in sorted(cache.glob("*")) if file.stat().st_size]


def assert_same(found: data.Dataset, expected: data.Dataset) -> None:
    assert isinstance(found.test.images, np.memmap)
    for part in ("train", "test"):
        mapped, plain = getattr(found, part), getattr(expected, part)
        assert (mapped.checksums is None, plain.checksums is None) == (False, True)
        np.testing.assert_array_equal(mapped.images, plain.images)
        np.testing.assert_array_equal(mapped.labels, plain.labels)
    # What the file says of its content is what would be measured of it.
    assert found.metadata() == expected.metadata()


@pytest.mark.parametrize(
    "options",
    [
        "",
        SIZED,
        "?channels=1",
        "?channels=3",
        "?mean=0.5,0.5,0.5",
        "?samples=3",
        "?samples_train=3",
    ],
)
def test_a_data_set_is_the_same_in_a_file(cache: Path, photos: Path, options: str) -> None:
    spec = f"folder:{photos}{options}"
    expected = data.load(spec)
    assert not cache.exists()
    assert_same(data.load(spec, memory=MEMORY), expected)
    assert_same(data.load(spec, memory=MEMORY), expected)
    assert len(kept(cache)) == 1


def test_the_split_is_part_of_the_file(cache: Path, photos: Path) -> None:
    for size in ("50%", "3"):
        spec = f"folder:{photos}/train?split_at={size}"
        assert_same(data.load(spec, memory=MEMORY), data.load(spec))
    assert len(kept(cache)) == 2


def test_gray_images_keep_one_channel_until_one_is_in_color(
    cache: Path, photos: Path, picture
) -> None:
    for file in photos.glob("*/*/*.png"):
        picture(10, 12, channels=1).save(file)
    spec = f"folder:{photos}"
    gray = data.load(spec, memory=MEMORY)
    assert gray.image_shape == (1, 10, 12)
    assert_same(gray, data.load(spec))
    picture(10, 12, 5).save(photos / "test/bee/1.png")  # the last one
    mixed = data.load(spec, memory=MEMORY)
    assert mixed.image_shape == (3, 10, 12)
    assert_same(mixed, data.load(spec))


@pytest.mark.parametrize("options", ["", "?bits=14"])
def test_deep_images_are_scaled_by_the_largest_value_of_all(
    cache: Path, photos: Path, options: str
) -> None:
    generator = np.random.default_rng(0)
    for number, file in enumerate(sorted(photos.glob("*/*/*.png"))[::2]):
        values = generator.integers(0, 500 * (number + 1), (10, 12), dtype=np.uint16)
        Image.fromarray(values).save(file)
    spec = f"folder:{photos}{options}"
    assert_same(data.load(spec, memory=MEMORY), data.load(spec))


def test_the_notes_are_told_every_time(cache: Path, photos: Path, caplog) -> None:
    caplog.set_level(logging.INFO, "memtool")
    for _ in range(2):
        caplog.clear()
        data.load(f"folder:{photos}", memory=MEMORY)
        assert "4 of 12 images are gray" in caplog.text
        assert f"decoded images are in {kept(cache)[0]}" in caplog.text


def test_images_are_decoded_once(cache: Path, photos: Path, reads: list[str]) -> None:
    data.load(f"folder:{photos}{SIZED}", memory=MEMORY)
    assert len(reads) == 12
    data.load(f"folder:{photos}{SIZED}", memory=MEMORY)
    assert len(reads) == 12
    photos.rename(photos.with_name("moved"))  # a folder is the same in another place
    data.load(f"folder:{photos.with_name('moved')}{SIZED}", memory=MEMORY)
    assert len(reads) == 12


def test_a_change_of_the_folder_or_of_the_options_makes_another_file(
    cache: Path, photos: Path, picture
) -> None:
    def load(options: str = "") -> data.Dataset:
        return data.load(f"folder:{photos}{options}", memory=MEMORY)

    before = load()
    picture(10, 12, 77).save(photos / "train/ant/1.png")
    assert not np.array_equal(load().train.images, before.train.images)
    picture(10, 12, 78).save(photos / "train/ant/9.png")
    assert len(load().train) == 9
    (photos / "test/ant/1.png").rename(photos / "test/bee/7.png")
    assert load().test.labels.tolist() == [0, 1, 1, 1]
    load("?image_size=9")
    load("?image_size=9&interpolation=nearest")
    assert len(kept(cache)) == 6


def test_a_file_in_use_cannot_be_changed_through_its_images(cache: Path, photos: Path) -> None:
    spec = f"folder:{photos}{SIZED}"
    first = data.load(spec, memory=MEMORY).train.images
    expected = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(data.load(spec, memory=MEMORY).train.images, expected)


@pytest.mark.parametrize(
    "damage", ["truncated", "longer", "header", "metadata", "section", "empty"]
)
def test_a_damaged_file_is_made_again(cache: Path, photos: Path, caplog, damage: str) -> None:
    spec = f"folder:{photos}"
    data.load(spec, memory=MEMORY)
    (file,) = kept(cache)
    content = file.read_bytes()
    damaged = {
        "truncated": content[:-1],
        "longer": content + b"0",
        "header": b"\xff" * 100 + content[100:],
        "metadata": content.replace(b"fingerprint", b"fingerPrint", 1),
        "section": content.replace(rb"\"data\"", rb"\"Data\"", 1),
        "empty": b"",
    }[damage]
    assert damaged != content
    file.write_bytes(damaged)
    assert_same(data.load(spec, memory=MEMORY), data.load(spec))
    assert f"{file}: " in caplog.text and "decoded again" in caplog.text
    assert "download" not in caplog.text
    assert kept(cache) == [file] and file.read_bytes() == content


def test_an_image_that_is_not_as_it_was_written_is_refused_when_it_is_used(
    cache: Path, photos: Path
) -> None:
    spec, device = f"folder:{photos}", torch.device("cpu")
    data.load(spec, memory=MEMORY)
    (file,) = kept(cache)
    content = bytearray(file.read_bytes())
    content[-4 * 12 - 1] ^= 1  # the last pixel of the last image, before the checksums
    file.write_bytes(content)
    test = data.load(spec, memory=MEMORY).test.on(device)
    assert test[[0, 1, 2]].shape == (3, 3, 10, 12)
    with pytest.raises(MemtoolError, match="damaged .1 of 1 images .*; remove it"):
        test[[0, 3]]
    file.unlink()
    assert data.load(spec, memory=MEMORY).test.on(device)[[0, 3]].shape == (2, 3, 10, 12)


def test_a_full_disk_is_refused_before_the_work(
    cache: Path, photos: Path, monkeypatch, reads: list[str], refused
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    told = refused(f"folder:{photos}{SIZED}", memory=MEMORY)
    assert "decoded, more than --memory" in told and "MEMTOOL_CACHE" in told
    assert not reads and not kept(cache)


def test_a_disk_that_is_a_little_too_small_is_told_with_sizes_that_say_so(
    cache: Path, photos: Path, monkeypatch, refused
) -> None:
    free = 2**20  # that the header takes alone
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, free))
    told = refused(f"folder:{photos}{SIZED}", memory=MEMORY)
    assert "take 1.1 MiB decoded" in told and "has 1.0 MiB left" in told


def test_a_disk_that_becomes_full_leaves_nothing(
    cache: Path, photos: Path, monkeypatch, refused
) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    told = refused(f"folder:{photos}", memory=MEMORY)
    assert "cannot be written (No space left on device)" in told
    assert not kept(cache)


def test_a_disk_that_cannot_reserve_its_blocks_is_used_all_the_same(
    cache: Path, photos: Path, monkeypatch
) -> None:
    def cannot(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    spec = f"folder:{photos}"
    assert_same(data.load(spec, memory=MEMORY), data.load(spec))


def test_a_cache_that_cannot_be_written_is_told_with_the_way_out(
    tmp_path: Path, photos: Path, monkeypatch, refused
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEMTOOL_CACHE", str(tmp_path / "file/cache"))
    told = refused(f"folder:{photos}", memory=MEMORY)
    assert "cannot be written" in told and "MEMTOOL_CACHE" in told


def test_images_that_cannot_be_read_leave_nothing(cache: Path, photos: Path, refused) -> None:
    (photos / "test/bee/1.png").write_bytes(b"no")
    assert "1 of 12 images cannot be read" in refused(f"folder:{photos}", memory=MEMORY)
    assert not kept(cache)


OTHER = """
import os, signal, sys, time
from pathlib import Path
from memtool import data
from memtool.data import images
read, count = images.read, 0
def slow(path, options):
    global count
    count += 1
    if count == 6:
        {at_six}
    return read(path, options)
images.read = slow
data.load(sys.argv[1], memory={memory})
"""


def other_process(spec: str, at_six: str) -> "subprocess.Popen[bytes]":
    """A process that decodes a data set, and does something before the sixth image."""
    source = OTHER.format(at_six=at_six, memory=MEMORY)
    return subprocess.Popen([sys.executable, "-c", source, spec])


def test_a_process_that_is_killed_leaves_nothing_in_the_way(
    cache: Path, photos: Path, reads: list[str]
) -> None:
    spec = f"folder:{photos}{SIZED}"
    killed = other_process(spec, "os.kill(os.getpid(), signal.SIGKILL)")
    assert killed.wait(60) == -signal.SIGKILL
    (left,) = kept(cache)
    assert left.name.endswith(".tmp")
    found = data.load(spec, memory=MEMORY)
    assert len(reads) == 12
    assert_same(found, data.load(spec))
    assert len(kept(cache)) == 1 and not left.exists()


@pytest.mark.parametrize("dies", [False, True], ids=["goes on", "dies"])
def test_of_two_processes_one_decodes_and_the_other_waits(
    cache: Path, photos: Path, tmp_path: Path, caplog, reads: list[str], dies: bool
) -> None:
    caplog.set_level(logging.INFO, "memtool")
    spec, go = f"folder:{photos}{SIZED}", tmp_path / "go"
    until = f"while not Path({str(go)!r}).exists(): time.sleep(0.01)"
    other = other_process(spec, until)
    found: list[data.Dataset] = []
    mine = threading.Thread(target=lambda: found.append(data.load(spec, memory=MEMORY)))
    try:
        _wait_for(lambda: bool([*cache.glob(f".*.tmp/{other.pid}")]))
        mine.start()
        _wait_for(lambda: "another process is decoding it" in caplog.text)
        assert not reads
        if dies:
            other.kill()
        else:
            go.touch()
        mine.join(60)
    finally:
        other.kill()
        other.wait(60)
    assert len(reads) == (12 if dies else 0)
    assert_same(found[0], data.load(spec))
    assert len(kept(cache)) == 1


def _wait_for(condition) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError


def test_where_there_are_no_locks_each_process_writes_its_own_and_the_file_is_whole(
    cache: Path, photos: Path, monkeypatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def without(descriptor: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", without)
    spec = f"folder:{photos}"
    assert_same(data.load(spec, memory=MEMORY), data.load(spec))
    assert len(kept(cache)) == 1


def test_the_cache_is_in_the_users_cache_by_default(tmp_path: Path, photos: Path, monkeypatch):
    monkeypatch.delenv("MEMTOOL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    data.load(f"folder:{photos}", memory=MEMORY)
    assert len(kept(tmp_path / "xdg/memtool")) == 1


def test_folders_that_differ_in_nothing_but_pixels_are_told_apart(
    cache: Path, tmp_path: Path
) -> None:
    for number, name in enumerate(("one", "other")):
        for place in ("train/a", "train/b", "test/a", "test/b"):
            (tmp_path / name / place).mkdir(parents=True)
            file = tmp_path / name / place / "0.ppm"
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file)
            os.utime(file, (0, 0))
        data.load(f"folder:{tmp_path / name}", memory=100)
    found = data.load(f"folder:{tmp_path / 'other'}", memory=100)
    assert len(kept(cache)) == 2 and found.train.images.min() == 1
