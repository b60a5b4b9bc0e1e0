"""Image files: modes, sizes, resizing, and files that are broken or lie."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memtool import MemtoolError, data
from memtool.data import images, pictures


@pytest.mark.parametrize("threaded", [False, True], ids=["serial", "threads"])
def test_images_of_any_mode_and_size(tmp_path: Path, monkeypatch, threaded: bool, picture) -> None:
    monkeypatch.setattr(images, "THREADED_FILE_SIZE", 0 if threaded else 10**9)
    (tmp_path / "x").mkdir()
    sixteen = np.linspace(0, 65535, 12 * 10).astype(np.uint16).reshape(12, 10)
    Image.fromarray(sixteen).save(tmp_path / "x/0.png")
    for number, mode in enumerate(("L", "1", "LA", "P", "RGBA"), start=1):
        picture(9 + number, 12).convert(mode).save(tmp_path / f"x/{number}.png")
    picture(9, 9).convert("CMYK").save(tmp_path / "x/6.jpg")
    found = data.load(f"folder:{tmp_path}?image_size=8").test.images
    assert found.shape == (7, 3, 8, 8)
    for gray in found[:4]:
        assert (gray[0] == gray[1]).all()
    assert found[0, 0, 0].max() < 50 < 205 < found[0, 0, -1].min()
    assert len({bytes(image) for image in found}) == 7


def test_gray_images_have_one_channel(tmp_path: Path, picture) -> None:
    (tmp_path / "x").mkdir()
    for number in range(3):
        picture(4, 4, number, channels=1).save(tmp_path / f"x/{number}.png")
    gray = data.load(f"folder:{tmp_path}").test.images
    assert gray.shape == (3, 1, 4, 4)
    picture(4, 4, 3).save(tmp_path / "x/3.png")
    mixed = data.load(f"folder:{tmp_path}").test.images
    assert mixed.shape == (4, 3, 4, 4)
    assert (mixed[:3] == gray).all()


def test_resizing_keeps_the_middle_and_the_proportions(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30), np.uint8)
    pixels[:, 10:20] = 200
    (tmp_path / "x").mkdir()
    Image.fromarray(pixels).save(tmp_path / "x/wide.png")
    Image.fromarray(pixels.T).save(tmp_path / "x/high.png")
    found = data.load(f"folder:{tmp_path}?image_size=5").test.images
    assert (found[..., 1:-1, 1:-1] == 200).all() and (found > 150).all()


def test_sizes_that_differ_name_both_files_and_the_option(tmp_path: Path, picture, refused) -> None:
    (tmp_path / "x").mkdir()
    picture(4, 6).save(tmp_path / "x/a.png")
    picture(5, 6).save(tmp_path / "x/b.png")
    told = refused(f"folder:{tmp_path}")
    assert "b.png: is 6x5" in told and "a.png is 6x4" in told and "--image-size" in told


def test_broken_images_are_counted_and_the_first_ones_named(tmp_path: Path, write, refused) -> None:
    write(tmp_path, "val", 10, "jpg")
    for number in range(4):
        (tmp_path / f"val/ant/{number}.jpg").write_bytes(b"no")
    cut = tmp_path / "val/bee/5.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    told = refused(f"folder:{tmp_path / 'val'}")
    assert "5 of 20 images" in told and "and 2 more" in told
    assert "ant/0.jpg" in told and "ant/3.jpg" not in told


def test_a_pipe_among_the_images_does_not_wait(tmp_path: Path, write, refused) -> None:
    write(tmp_path, "", 1)
    os.mkfifo(tmp_path / "ant/1.png")
    assert "1.png (not a regular file)" in refused(f"folder:{tmp_path}")


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch, write, refused) -> None:
    write(tmp_path, "", 1)
    for limit in (15, 7):  # PIL warns beyond the limit and refuses beyond twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert "2 of 2 images cannot be read" in refused(f"folder:{tmp_path}")


def test_large_pictures_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch, write) -> None:
    write(tmp_path, "", 8)
    decode, running, together = pictures._picture, [], []

    def watched(*given):
        running.append(given)
        time.sleep(0.01)  # so that others could begin
        together.append(len(running))
        running.pop()
        return decode(*given)

    monkeypatch.setattr(pictures, "_picture", watched)
    monkeypatch.setattr(pictures, "LARGE", 15)
    monkeypatch.setattr(images, "THREADED_FILE_SIZE", 0)
    assert len(data.load(f"folder:{tmp_path}").test) == 16
    assert len(together) > 15 and set(together) == {1}


def test_more_than_the_memory_is_refused_before_it_is_taken(
    tmp_path: Path, monkeypatch, write, refused
) -> None:
    write(tmp_path, "", 1)
    monkeypatch.setattr(os, "sysconf", lambda name: 8)
    assert "; take smaller images or fewer" in refused(f"folder:{tmp_path}")


@pytest.mark.parametrize(("count", "told"), [(1, "1 image of 3x2"), (5, "5 images of 3x2")])
def test_room_that_is_not_allowed_is_told(count: int, told: str) -> None:
    with pytest.raises(MemtoolError, match=f"^{told} pixels: would take .* than --memory"):
        images.allocated((count, 3, 2, 3), memory=17)
