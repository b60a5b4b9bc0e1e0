"""Resizing: the pixels are those of timm's and torchvision's transforms."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms

from memtool import MemtoolError, data
from memtool.data.resizing import fitted
from memtool.data.spec import INTERPOLATIONS, parse

SIZES = [(300, 400), (401, 297), (64, 64), (30, 45), (57, 20), (256, 256)]  # height, width


def made(image: Image.Image, query: str) -> np.ndarray:
    return np.asarray(fitted(image, parse(f"digits?{query}")[1]))


def of_timm(image: Image.Image, size: int, **settings) -> np.ndarray:
    transform = pytest.importorskip("timm.data").create_transform(
        (3, size, size), is_training=False, normalize=False, **settings
    )
    return transform(image).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1, 0.95, 1.15])
def test_pixels_are_those_of_timm(mode: str, crop_pct: float, picture) -> None:
    mean = (0.485, 0.456, 0.406)
    for (height, width), method, size in product(SIZES, ("nearest", "bilinear", "bicubic"), (64,)):
        image = picture(height, width)
        expected = of_timm(
            image, size, crop_pct=crop_pct, crop_mode=mode, interpolation=method, mean=mean
        )
        query = f"image_size={size}&crop_pct={crop_pct}&crop_mode={mode}&interpolation={method}"
        found = made(image, f"{query}&mean=0.485,0.456,0.406")
        assert found.dtype == np.uint8 and found.shape == (size, size, 3)
        assert (found == expected).all(), (height, width, method)


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_every_filter_is_that_of_timm(method: str, picture) -> None:
    image = picture(90, 131)
    found = made(image, f"image_size=56&crop_pct=0.875&interpolation={method}")
    assert (found == of_timm(image, 56, crop_pct=0.875, interpolation=method)).all()


@pytest.mark.parametrize("height, width", [*SIZES, (500, 333), (720, 1280)])
def test_pixels_are_those_of_torchvision(height: int, width: int, picture) -> None:
    image = picture(height, width)
    usual = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    found = made(image, "image_size=224&crop_pct=0.875")
    assert (found == np.asarray(usual(image))).all()


def test_a_size_alone_gives_the_middle_square(picture) -> None:
    image = picture(50, 81)
    expected = ImageOps.fit(image, (32, 32), Image.Resampling.BILINEAR)
    assert (made(image, "image_size=32") == np.asarray(expected)).all()
    assert (made(image, "image_size=32&crop_pct=1") != np.asarray(expected)).any()


def test_files_and_arrays_give_the_pixels_of_timm(tmp_path: Path, picture, saved) -> None:
    query = "image_size=24&crop_pct=0.9&interpolation=bicubic"
    pictures = [picture(40, 40, seed) for seed in range(3)]
    expected = np.stack(
        [of_timm(one, 24, crop_pct=0.9, interpolation="bicubic") for one in pictures]
    )
    (tmp_path / "x").mkdir()
    for number, one in enumerate(pictures):
        one.save(tmp_path / f"x/{number}.png")
    arrays = np.stack([np.asarray(one) for one in pictures])
    file = saved(tmp_path / "a.npz", images=arrays, labels=np.array([0, 1, 0]))
    for spec in (f"folder:{tmp_path}", file):
        found = data.load(f"{spec}?{query}").test.images
        assert (found == expected.transpose(0, 3, 1, 2)).all()


def test_arrays_that_have_the_size_are_cropped_too(tmp_path: Path, picture, saved) -> None:
    image = picture(32, 32)
    arrays = np.asarray(image)[None].repeat(2, axis=0)
    file = saved(tmp_path / "a.npz", images=arrays, labels=np.array([0, 1]))
    zoomed = data.load(f"{file}?image_size=32&crop_pct=0.875").test.images
    expected = of_timm(image, 32, crop_pct=0.875, interpolation="bilinear")
    assert (zoomed[0] == expected.transpose(2, 0, 1)).all()
    for query in ("image_size=32", "image_size=32&crop_pct=1"):
        same = data.load(f"{file}?{query}").test.images
        assert (same == arrays.transpose(0, 3, 1, 2)).all()


def test_gray_images_get_a_border_of_the_mean_color(tmp_path: Path, picture, saved) -> None:
    image = picture(20, 40, channels=1)
    arrays = np.asarray(image)[None].repeat(2, axis=0)
    file = saved(tmp_path / "a.npz", images=arrays, labels=np.array([0, 1]))
    query = "image_size=16&crop_mode=border&interpolation=bicubic"
    mean = (0.5, 0.2, 0.8)
    found = data.load(f"{file}?{query}&mean=0.5,0.2,0.8&std=1,1,1").test.images
    expected = of_timm(
        image.convert("RGB"), 16, crop_pct=1, crop_mode="border", interpolation="bicubic", mean=mean
    )
    assert (found[0] == expected.transpose(2, 0, 1)).all()
    gray = data.load(f"{file}?{query}&mean=0.5&std=1").test.images
    assert gray.shape == (2, 1, 16, 16) and set(gray[0, 0, [0, -1]].ravel()) == {128}


def test_deep_values_stay_in_their_range(tmp_path: Path, refused) -> None:
    pixels = np.zeros((40, 40), np.uint16)
    pixels[10:30, 10:30] = 65535
    (tmp_path / "x").mkdir()
    Image.fromarray(pixels).save(tmp_path / "x/0.png")
    eight = Image.fromarray((pixels // 257).astype(np.uint8))
    query = "image_size=25&crop_pct=0.8&interpolation=lanczos"  # which swings beyond an edge
    found = data.load(f"folder:{tmp_path}?{query}").test.images[0, 0]
    # PIL rounds and cuts 8 bits twice, after either pass; out of range, 0 would become 255.
    assert abs(found.astype(int) - made(eight, query)).max() <= 8
    assert "no border is made" in refused(
        f"folder:{tmp_path}?image_size=25&crop_mode=border&mean=0.5&std=1"
    )


def test_a_strip_that_would_fill_the_memory_is_refused(tmp_path: Path, saved, refused) -> None:
    strip = Image.fromarray(np.zeros((1, 60_000), np.uint8))
    with pytest.raises(MemtoolError, match="60000x1 pixels would become one of 12000000x200"):
        made(strip, "image_size=200&crop_pct=1")
    images = np.zeros((2, 1, 500), np.uint8)
    file = saved(tmp_path / "a.npz", images=images, labels=np.array([0, 1]))
    told = refused(f"{file}?image_size=4&crop_mode=border&mean=0.5&std=1")
    assert "500x1 pixels would become one of 4x0" in told


def test_colors_are_normalized_after_resizing(picture) -> None:
    image = picture(80, 60)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    expected = pytest.importorskip("timm.data").create_transform(
        (3, 32, 32), is_training=False, crop_pct=0.9, interpolation="bicubic", mean=mean, std=std
    )(image)
    pixels = made(image, "image_size=32&crop_pct=0.9&interpolation=bicubic")
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    assert torch.allclose(data.normalize(images, mean, std)[0], expected, atol=1e-6)
