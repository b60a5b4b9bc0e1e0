"""Picture files: depth, transparency, orientation, formats, and what is told of them."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from memtool import data
from memtool.data.pictures import FORMATS

GENERATOR = np.random.default_rng(0)
COLORS = GENERATOR.integers(0, 256, (8, 10, 3), dtype=np.uint8)


def png16(values: np.ndarray, key: tuple[int, ...] | None = None) -> bytes:
    """A PNG file of 16 bits per value, (h, w) or (h, w, c), which PIL cannot write; pixels of the
    color `key` are transparent."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[np.atleast_3d(values).shape[2]]
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    if key:
        start += chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16(values: np.ndarray, photometric: int) -> bytes:
    """An uncompressed TIFF file of 16 bits per value, (h, w) or (h, w, 3)."""
    height, width, channels = np.atleast_3d(values).shape
    content = values.astype("<u2").tobytes()
    offset = 8 + 2 + 12 * 9 + 4
    fields = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, 16 if channels == 1 else offset),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, offset + 6),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(content)),
    ]
    header = b"II*\0" + struct.pack("<IH", 8, len(fields))
    entries = b"".join(struct.pack("<HHII", *field) for field in fields)
    return header + entries + struct.pack("<I", 0) + struct.pack("<HHH", 16, 16, 16) + content


@pytest.fixture
def folder(tmp_path: Path):
    """`folder(name=bytes or image, ...)`: the spec of a folder of one class with these files."""

    def folder(**files: bytes | Image.Image) -> str:
        (tmp_path / "x").mkdir()
        for name, content in files.items():
            path = tmp_path / "x" / name.replace("_", ".")
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content.save(path)
        return f"folder:{tmp_path}"

    return folder


def values_up_to(top: int, *shape: int) -> np.ndarray:
    """Random whole numbers, of which the first is 0 and the last is `top`."""
    values = GENERATOR.integers(0, top + 1, shape)
    values.flat[0], values.flat[-1] = 0, top
    return values


@pytest.mark.parametrize(("peak", "top"), [(255, 255), (700, 1023), (4000, 4095), (60000, 65535)])
@pytest.mark.parametrize("kind", ["png", "tif", "png in color", "png with alpha"])
def test_files_of_16_bits_use_the_range_that_their_values_have(
    folder, caplog, peak: int, top: int, kind: str
) -> None:
    caplog.set_level("INFO", logger="memtool")
    values = values_up_to(peak, 8, 10, *((3,) if kind == "png in color" else ()))
    dark = values // 8  # another file: all are reduced by the same factor
    if kind == "tif":
        spec = folder(a_tif=tiff16(values, 1), b_tif=tiff16(dark, 1))
    elif kind == "png with alpha":
        opaque = np.full_like(values, 65535)
        spec = folder(a_png=png16(np.dstack([values, opaque])), b_png=png16(dark))
    else:
        spec = folder(a_png=png16(values), b_png=png16(dark))
    found = data.load(spec).test.images
    for image, expected in zip(found, (values, dark), strict=True):
        exact = np.atleast_3d(expected).transpose(2, 0, 1) * (255 / top)
        assert abs(image - exact).max() <= 0.5
    assert f"2 of 2 images have more than 8 bits per value; their values go up to {peak}" in (
        caplog.text
    )
    assert f"0..{top} becomes 0..255" in caplog.text


def test_the_number_of_bits_may_be_said(folder, refused) -> None:
    values = values_up_to(900, 8, 10)
    spec = folder(a_png=png16(values))
    found = data.load(f"{spec}?bits=12").test.images
    assert abs(found[0, 0] - values * (255 / 4095)).max() <= 0.5
    assert "has values up to 900, which need more than 9 bits" in refused(f"{spec}?bits=9")
    assert "bits is for folders of image files" in refused("digits?bits=9")


def test_deep_images_are_resized_before_they_are_reduced(folder) -> None:
    values = np.repeat([[100, 3000]], 8, axis=0).repeat(4, axis=1)
    spec = folder(a_png=png16(values), b_png=png16(np.full((8, 8), 4095)))
    found = data.load(f"{spec}?image_size=2").test.images
    assert found[1].min() == 255
    assert found[0, 0, 0, 0] < found[0, 0, 0, 1] < 190 and found.shape == (2, 1, 2, 2)


def test_deep_and_ordinary_images_mix(folder) -> None:
    deep, gray = values_up_to(4095, 8, 10), COLORS[..., 0]
    spec = folder(a_png=png16(deep), b_png=Image.fromarray(gray), c_png=Image.fromarray(COLORS))
    found = data.load(spec).test.images
    assert abs(found[0] - deep * (255 / 4095)).max() <= 0.5
    assert (found[1] == gray).all()
    assert (found[2] == COLORS.transpose(2, 0, 1)).all()


def test_a_range_that_the_file_says_is_taken(folder) -> None:
    values = values_up_to(200, 8, 10)
    spec = folder(a_pgm=b"P5 10 8 4095\n" + values.astype(">u2").tobytes())
    assert abs(data.load(spec).test.images[0, 0] - values * (255 / 4095)).max() <= 0.5


def test_colors_of_16_bits_in_tiff(tmp_path: Path, folder, refused, caplog) -> None:
    caplog.set_level("INFO", logger="memtool")
    values = values_up_to(65535, 8, 10, 3)
    spec = folder(a_tif=tiff16(values, 2))
    assert (data.load(spec).test.images[0] == (values >> 8).transpose(2, 0, 1)).all()
    assert "of which the upper 8 are read" in caplog.text
    (tmp_path / "x/a.tif").write_bytes(tiff16(values_up_to(4095, 8, 10, 3), 2))
    assert "a.tif: only the upper 8 of 16 bits are read" in refused(spec)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (tiff16(values_up_to(4095, 8, 10), 0), "count from white"),
        (png16(values_up_to(65535, 8, 10, 4)), "transparent pixels and 16 bits"),
        (png16(np.zeros((8, 10, 4), np.uint16)), "transparent pixels and 16 bits"),
        (png16(np.full((8, 10, 2), 65534, np.uint16)), "transparent pixels and 16 bits"),
        (png16(np.full((8, 10, 3), 300, np.uint16), (300,) * 3), "transparent pixels and 16 bits"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", f"not one of {FORMATS[0]}, "),
        (b"<html>", "not one of PNG"),
        (b"", "not one of PNG"),
    ],
    ids=["white is zero", "transparent", "clear", "gray", "color key", "eps", "html", "empty"],
)
def test_files_that_cannot_be_read_say_why(folder, refused, content: bytes, told: str) -> None:
    told_of = refused(folder(a_png=content))
    assert told in told_of and "1 of 1 images cannot be read" in told_of


def test_a_color_key_of_16_bits_that_no_pixel_has_means_nothing(folder) -> None:
    values = np.full((8, 10, 3), 30_000, np.uint16)
    keyed = data.load(folder(a_png=png16(values, (1, 2, 3)))).test.images
    assert (keyed == keyed[0, 0, 0, 0]).all() and keyed.shape == (1, 3, 8, 10)


def test_transparent_pixels_are_shown_on_white(folder, caplog) -> None:
    caplog.set_level("INFO", logger="memtool")
    alpha = np.full((8, 10, 1), 255, dtype=np.uint8)
    alpha[:4], alpha[4, 0] = 0, 51
    clear = Image.fromarray(np.dstack([COLORS, alpha]))
    gray = Image.fromarray(np.dstack([COLORS[..., :1], alpha]))
    opaque = Image.fromarray(COLORS).convert("RGBA")
    palette = Image.fromarray(COLORS).quantize(8)
    keyed = palette.copy()
    keyed.info["transparency"] = int(np.asarray(palette)[0, 0])
    files = {"a": clear, "b": gray, "c": opaque, "d": palette, "e": keyed}
    found = data.load(folder(**{f"{name}_png": file for name, file in files.items()})).test.images
    weight = alpha.transpose(2, 0, 1) / 255
    for image, pixels in zip(found[:2], (COLORS, COLORS[..., :1]), strict=True):
        expected = pixels.transpose(2, 0, 1) * weight + 255 * (1 - weight)
        assert abs(image - expected).max() <= 1 and (image[:, :4] == 255).all()
    assert (found[2] == COLORS.transpose(2, 0, 1)).all()
    assert (found[4][:, 0, 0] == 255).all() and (found[3] != found[4]).any()
    assert "3 of 5 images have transparent pixels, and are shown on white" in caplog.text


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_exif_orientation_is_told_and_applied_when_asked(
    folder, caplog, orientation: int, suffix: str
) -> None:
    caplog.set_level("INFO", logger="memtool")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(COLORS)
    spec = folder()
    path = Path(spec.removeprefix("folder:")) / f"x/a.{suffix}"
    image.save(path, exif=exif)
    stored = Image.open(path)
    found = data.load(spec).test.images[0]
    assert (found == np.asarray(stored.convert("RGB")).transpose(2, 0, 1)).all()
    assert ("1 of 1 images have an EXIF orientation" in caplog.text) == (orientation != 1)
    caplog.clear()
    upright = data.load(f"{spec}?orient=true").test.images[0]
    expected = ImageOps.exif_transpose(stored).convert("RGB")
    assert (upright == np.asarray(expected).transpose(2, 0, 1)).all()
    assert not caplog.messages


def test_deep_images_are_turned_too(folder) -> None:
    spec = folder()
    exif = Image.Exif()
    exif[0x0112] = 6
    values = values_up_to(65535, 8, 10).astype(np.uint16)
    Image.fromarray(values).save(Path(spec.removeprefix("folder:")) / "x/a.png", exif=exif)
    found = data.load(f"{spec}?orient=true").test.images[0, 0]
    assert abs(found - np.rot90(values, -1) * (255 / 65535)).max() <= 0.5


def test_cmyk_and_several_frames_are_told(folder, caplog) -> None:
    caplog.set_level("INFO", logger="memtool")
    spec = folder(a_jpg=Image.fromarray(COLORS).convert("CMYK"))
    frames = [Image.fromarray(COLORS), Image.fromarray(255 - COLORS)]
    path = Path(spec.removeprefix("folder:")) / "x/b.png"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    found = data.load(spec).test.images
    assert (found[1] == COLORS.transpose(2, 0, 1)).all()
    assert "1 of 2 images are CMYK" in caplog.text
    assert "1 of 2 images have several frames, of which the first is taken" in caplog.text


def test_gray_images_among_others_are_told(folder, caplog) -> None:
    caplog.set_level("INFO", logger="memtool")
    gray = Image.fromarray(COLORS[..., 0])
    data.load(folder(a_png=gray, b_png=gray, c_png=Image.fromarray(COLORS)))
    assert "2 of 3 images are gray, and get three equal channels" in caplog.text


def test_channels_make_images_gray_or_repeat_gray(folder, refused) -> None:
    spec = folder(a_png=Image.fromarray(COLORS))
    gray = data.load(f"{spec}?channels=1").test.images
    assert (gray[0, 0] == np.asarray(Image.fromarray(COLORS).convert("L"))).all()
    digits, color = data.load("digits"), data.load("digits?channels=3")
    assert color.image_shape == (3, 8, 8) and len(color.mean) == 3
    assert (color.train.images == digits.train.images).all()
    assert "channels is 1 or 3" in refused("digits?channels=2")
    assert "orient is true or false" in refused("digits?orient=maybe")


def test_files_are_known_by_their_content(folder) -> None:
    spec = folder()
    path = Path(spec.removeprefix("folder:")) / "x/a.png"
    Image.fromarray(COLORS).save(path, format="BMP")
    assert (data.load(spec).test.images[0] == COLORS.transpose(2, 0, 1)).all()


def test_part_of_deep_images_does_not_tell_their_bits(folder, refused) -> None:
    spec = folder(a_png=png16(values_up_to(900, 8, 10)), b_png=png16(values_up_to(4000, 8, 10)))
    assert "part of them does not tell how many; say so: '" in refused(f"{spec}?samples=1")
    whole = data.load(spec).test.images
    part = data.load(f"{spec}?samples=1&bits=12").test.images
    assert any(np.array_equal(part[0], one) for one in whole)


def test_deep_images_of_which_none_is_left_out_tell_their_bits(folder, refused) -> None:
    spec = folder(**{f"{name}_png": png16(values_up_to(3000, 8, 10)) for name in "abcd"})
    whole = data.load(spec)
    for options in ("samples=4", "samples=9", "split_at=50%&samples_train=2"):
        found = data.load(f"{spec}?{options}")
        together = np.concatenate([found.train.images, found.test.images])
        assert sorted(map(bytes, together)) == sorted(map(bytes, whole.test.images)), options
    for options in ("samples=3", "split_at=50%&samples=2", "split_at=50%&samples_train=1"):
        assert "part of them does not tell" in refused(f"{spec}?{options}"), options


@pytest.mark.parametrize("memory", [1000, 10**6])
def test_how_many_bits_images_had_is_on_record(
    folder, tmp_path_factory, monkeypatch, memory: int
) -> None:
    monkeypatch.setenv("MEMTOOL_CACHE", str(tmp_path_factory.mktemp("cache")))
    spec = folder(**{f"{name}_png": png16(values_up_to(900, 20, 20)) for name in "abcd"})
    assert data.load(spec, memory=memory).metadata()["bits"] == 10
    assert data.load(f"{spec}?bits=13", memory=memory).metadata()["bits"] == 13
    assert "bits" not in data.load("digits").metadata()
