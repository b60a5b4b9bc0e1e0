"""Data sets: what a spec gives, whatever it is kept in, and what is said of one that is broken."""

import os
import pickle
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from memtool import MemtoolError, data
from memtool.data import images, sources

DIGITS = "2fe6cbdd6dbeba3067b006f6ae10f8d4395174f3d3035313dfcf1b2c317ec18c"


def picture(height: int, width: int, seed: int = 0, channels: int = 3) -> Image.Image:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


def write(root: Path, part: str, count: int, suffix: str = "png") -> None:
    """`count` images of 4x4 for each of two classes."""
    for label, name in enumerate(("ant", "bee")):
        (root / part / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            seed = 100 * label + number
            picture(4, 4, seed).save(root / part / name / f"{number}.{suffix}")


def refused(spec: object, **options: object) -> str:
    """What `load` says of `spec`; one line."""
    with pytest.raises(MemtoolError) as caught:
        data.load(str(spec), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Digits and the stratified choice


def test_digits_are_a_fixed_split() -> None:
    digits = data.load("digits")
    assert (len(digits.train), len(digits.test), digits.image_shape) == (1297, 500, (1, 8, 8))
    assert np.bincount(digits.test.labels).tolist() == [50, 51, 49, 51, 50, 51, 50, 50, 48, 50]
    assert digits.fingerprint == DIGITS
    assert digits.train.images.max() == 16


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.data())
def test_every_class_has_its_share(labels: list[int], drawn: st.DataObject) -> None:
    size = drawn.draw(st.integers(0, len(labels)))
    array = np.array(labels)
    chosen = sources.stratified(array, size)
    assert chosen.sum() == size
    for label in set(labels):
        share = (array == label).sum() * size / len(labels)
        assert abs(chosen[array == label].sum() - share) < 1


# Specs


def test_flags_become_options_of_the_spec() -> None:
    assert data.with_options("folder:x", image_size=None) == "folder:x"
    spec = data.with_options("folder:a?b?split_at=80%", image_size=8, split_at="0.5")
    assert spec == "folder:a?b?split_at=0.5&image_size=8"
    source, options = data.parse(spec)
    assert source == "folder:a?b"
    assert options == data.Options(image_size=8, split_at=0.5)


@pytest.mark.parametrize(
    ("text", "value"),
    [("80%", 0.8), ("0.25", 0.25), ("1000", 1000), ("1", 1)],
)
def test_split_at_is_a_part_or_a_number(text: str, value: float) -> None:
    assert data.parse(f"x?split_at={text}")[1].split_at == value


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("split_at=1.0", "part or the number"),
        ("split_at=120%", "part or the number"),
        ("split_at=nan", "part or the number"),
        ("image_size=0", "whole number"),
        ("samples=-3", "whole number"),
        ("samples=", "whole number"),
        ("mean=0.5,x", "separated by commas"),
        ("std=0", "positive"),
        ("size=3", "there are: image_size"),
    ],
)
def test_options_out_of_range_are_refused(query: str, told: str) -> None:
    assert told in refused(f"digits?{query}")


def test_the_nearest_name_is_shown(tmp_path: Path) -> None:
    assert "did you mean 'cifar100'" in refused("cifar-100")
    assert f"did you mean 'folder:{tmp_path}'" in refused(tmp_path)
    assert "fashion-mnist" in refused("")


def test_samples_are_test_images_in_proportion() -> None:
    full, some = data.load("digits"), data.load("digits?samples=100")
    assert (len(some.train), len(some.test)) == (0, 100)
    counts = np.bincount(full.test.labels)
    assert np.abs(np.bincount(some.test.labels) - counts / 5).max() < 1
    assert len(data.load("digits?samples=5000").test) == 500
    assert "leave it out" in refused("digits?samples=5", training=True)


def test_mean_and_std_are_those_of_the_training_images() -> None:
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


# Folders


def test_folders_in_any_place_and_of_either_name_have_one_fingerprint(tmp_path: Path) -> None:
    for root, test in (("a", "test"), ("b", "val")):
        write(tmp_path / root, "train", 3)
        write(tmp_path / root, test, 2)
    os.utime(tmp_path / "a/train/ant/0.png", (0, 0))
    first, second = (data.load(f"folder:{tmp_path / root}") for root in "ab")
    assert (len(first.train), len(first.test), first.classes) == (6, 4, ("ant", "bee"))
    assert first.fingerprint == second.fingerprint
    picture(4, 4, 77).save(tmp_path / "b/val/bee/1.png")
    assert data.load(f"folder:{tmp_path / 'b'}").fingerprint != first.fingerprint


def test_a_flat_folder_is_for_testing_unless_it_is_split(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("threaded", [False, True], ids=["serial", "threads"])
def test_images_of_any_mode_and_size(tmp_path: Path, monkeypatch, threaded: bool) -> None:
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


def test_gray_images_have_one_channel(tmp_path: Path) -> None:
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


def test_sizes_that_differ_name_both_files_and_the_option(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    picture(4, 6).save(tmp_path / "x/a.png")
    picture(5, 6).save(tmp_path / "x/b.png")
    told = refused(f"folder:{tmp_path}")
    assert "b.png: is 6x5" in told and "a.png is 6x4" in told and "--image-size" in told


def test_broken_images_are_counted_and_the_first_ones_named(tmp_path: Path) -> None:
    write(tmp_path, "val", 10, "jpg")
    for number in range(4):
        (tmp_path / f"val/ant/{number}.jpg").write_bytes(b"no")
    cut = tmp_path / "val/bee/5.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    told = refused(f"folder:{tmp_path / 'val'}")
    assert "5 of 20 images" in told and "and 2 more" in told
    assert "ant/0.jpg" in told and "ant/3.jpg" not in told


def test_other_files_hidden_files_and_deeper_folders_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, "", 2)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "ant/.0.png").write_bytes(b"no")
    (tmp_path / "ant/notes.txt").write_text("no")
    (tmp_path / "ant/deeper.png").mkdir()
    assert len(data.load(f"folder:{tmp_path}").test) == 4


def test_a_class_without_images_is_an_error_in_training_only(tmp_path: Path) -> None:
    write(tmp_path, "train", 1)
    write(tmp_path, "test", 1)
    (tmp_path / "test/bee/0.png").unlink()
    assert len(data.load(f"folder:{tmp_path}").test) == 1
    (tmp_path / "train/cat").mkdir()
    assert "train/cat: holds no images" in refused(f"folder:{tmp_path}")


def test_folders_of_another_form_are_explained(tmp_path: Path) -> None:
    assert "no such folder" in refused(f"folder:{tmp_path}/none")
    assert "one folder for each class" in refused(f"folder:{tmp_path}")
    write(tmp_path, "train", 1)
    assert "--split-at" in refused(f"folder:{tmp_path}")
    write(tmp_path / "test", "cow", 1)
    assert "class 'cow' is not in" in refused(f"folder:{tmp_path}")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    write(tmp_path, "train", 1)
    write(tmp_path, "test", 1)
    (tmp_path / "self").symlink_to("self")
    assert "no such folder" in refused(f"folder:{tmp_path}/self")
    (tmp_path / "train/ant/1.png").symlink_to("1.png")
    assert "1 of 5 images" in refused(f"folder:{tmp_path}")
    (tmp_path / "train/ant/1.png").unlink()
    (tmp_path / "train/ant/up").symlink_to("..")
    assert len(data.load(f"folder:{tmp_path}").train) == 2
    (tmp_path / "train/loop").symlink_to("..")
    assert "train/loop: holds no images" in refused(f"folder:{tmp_path}")


def test_a_pipe_among_the_images_does_not_wait(tmp_path: Path) -> None:
    write(tmp_path, "", 1)
    os.mkfifo(tmp_path / "ant/1.png")
    assert "1.png (not a regular file)" in refused(f"folder:{tmp_path}")


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "", 1)
    for limit in (15, 7):  # PIL warns beyond the limit and refuses beyond twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert "2 of 2 images cannot be read" in refused(f"folder:{tmp_path}")


def test_more_than_the_memory_is_refused_before_it_is_taken(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "", 1)
    monkeypatch.setattr(os, "sysconf", lambda name: 8)
    assert "this machine has" in refused(f"folder:{tmp_path}")


def test_progress_comes_to_the_number_of_images(tmp_path: Path) -> None:
    opened, steps = [], []

    def progress(description: str, total: int):
        opened.append((description, total))
        return nullcontext(steps.append)

    write(tmp_path, "", 150)
    data.load(f"folder:{tmp_path}", progress=progress)
    assert opened == [(f"reading folder:{tmp_path}", 300)]
    assert sum(steps) == 300


# Arrays


def saved(path: Path, **arrays: np.ndarray) -> Path:
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return path


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
def test_arrays_of_each_layout_and_type(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    found = data.load(str(saved(tmp_path / f"x.{suffix}", images=pixels, labels=LABELS)))
    assert (found.test.images == PIXELS).all()
    assert found.test.images.flags.writeable and found.test.images.flags.c_contiguous
    assert (found.test.labels == LABELS).all()
    assert (len(found.train), found.classes) == (0, ("0", "1", "2"))


def test_arrays_that_are_split(tmp_path: Path) -> None:
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
        (PIXELS[0, 0], LABELS, "is neither"),
        (PIXELS - np.float32(1), LABELS, "values from -1"),
        (PIXELS * np.float32(np.nan), LABELS, "values from nan"),
        (PIXELS / 100, LABELS, "fractions"),
        (PIXELS > 9, LABELS, "is bool"),
        (PIXELS, LABELS[:5], "6 images, 5 labels"),
        (PIXELS[:0], LABELS[:0], "0 images"),
        (PIXELS, LABELS - 1, "from -1 to 1"),
        (PIXELS, LABELS * 10**12, "to 2000000000000"),
        (PIXELS, LABELS / 2, "not whole numbers"),
        (PIXELS, np.eye(6, dtype=np.int64), "not whole numbers"),
    ],
)
def test_arrays_that_could_mean_anything_are_refused(
    tmp_path: Path, pixels: np.ndarray, labels: np.ndarray, told: str
) -> None:
    path = saved(tmp_path / "x.npz", images=pixels, labels=labels)
    assert told in refused(path) and str(path) in refused(path)


def test_files_without_the_arrays_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "x.npz")
    assert "no such file" in refused(tmp_path / "x.safetensors")
    assert "needs images and labels" in refused(saved(tmp_path / "x.npz", images=PIXELS))
    for suffix in ("npz", "safetensors"):
        path = tmp_path / f"broken.{suffix}"
        path.write_bytes(b"PK\x03\x04 and so on")
        assert "cannot be read" in refused(path)


def test_pickles_in_npz_are_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    np.savez(tmp_path / "x.npz", images=np.array([Trap()], dtype=object), labels=LABELS)
    assert "cannot be read" in refused(tmp_path / "x.npz")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("shape", ["(1152921504606846976, 3, 4, 4)", "(50000000000, 1, 1, 1)"])
def test_an_npz_header_may_claim_anything(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"1234"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", content)
        archive.writestr("labels.npy", content)
    assert "cannot be read" in refused(tmp_path / "x.npz")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_files_give_one_clear_error_or_arrays(suffix: str, drawn: st.DataObject) -> None:
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


# torchvision's


@pytest.fixture
def trusting(monkeypatch) -> None:
    """torchvision without its checksums."""

    def is_there(path: str, md5: str | None = None) -> bool:
        return os.path.isfile(path)

    for module in ("cifar", "mnist", "svhn", "utils"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", is_there)


def idx(array: np.ndarray) -> bytes:
    """The format of the MNIST files: a magic number, the shape, the bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_mnist_from_its_files(tmp_path: Path, name: str, folder: str, capfd) -> None:
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (20, 28, 28), dtype=np.uint8)
    for part, count in (("train", 20), ("t10k", 10)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels[:count]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    found = data.load(name, tmp_path)
    assert (found.train.images[:, 0] == pixels).all()
    assert (len(found.test), found.image_shape, len(found.classes)) == (10, (1, 28, 28), 10)
    assert found.classes[0] == {"mnist": "0", "fashion-mnist": "T-shirt/top"}[name]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_from_its_files(tmp_path: Path, trusting: None, name: str, capfd) -> None:
    classes = int(name.removeprefix("cifar"))
    kind = getattr(__import__("torchvision").datasets, name.upper())
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3 * 32 * 32), dtype=np.uint8)
    labels = {"labels" if classes == 10 else "fine_labels": [classes - 1] * 8}
    for file, _ in kind.train_list + kind.test_list:
        (folder / file).write_bytes(pickle.dumps({"data": pixels, **labels}))
    names = [f"class {number}" for number in range(classes)]
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names}))
    found = data.load(name, tmp_path)
    assert len(found.train) == 8 * len(kind.train_list)
    assert (found.test.images == pixels.reshape(8, 3, 32, 32)).all()
    assert found.classes == tuple(names)
    assert (found.train.labels == classes - 1).all()
    assert capfd.readouterr() == ("", "")


def test_svhn_from_its_files(tmp_path: Path, trusting: None, monkeypatch) -> None:
    for part in ("train", "test"):
        (tmp_path / f"{part}_32x32.mat").touch()
    monkeypatch.setattr("memtool.data.sources.find_spec", lambda name: None)
    assert "memtool[svhn]" in refused("svhn", folder=tmp_path)
    monkeypatch.setattr("memtool.data.sources.find_spec", lambda name: name)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    content = {"X": pixels, "y": np.array([[10], [1], [2], [9]], dtype=np.uint8)}
    reader = SimpleNamespace(loadmat=lambda path: content)
    monkeypatch.setitem(sys.modules, "scipy", SimpleNamespace(io=reader))
    monkeypatch.setitem(sys.modules, "scipy.io", reader)
    found = data.load("svhn", tmp_path)
    assert found.train.labels.tolist() == [0, 1, 2, 9]
    assert (found.test.images == pixels.transpose(3, 2, 0, 1)).all()
    assert found.classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("name", "module", "file"),
    [
        ("cifar10", "cifar", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar", "cifar-100-python.tar.gz"),
        ("svhn", "svhn", "train_32x32.mat, test_32x32.mat"),
        ("mnist", "mnist", "MNIST/raw/t10k-labels-idx1-ubyte.gz"),
        ("fashion-mnist", "mnist", "FashionMNIST/raw/train-images-idx3-ubyte.gz"),
    ],
)
def test_without_network_the_files_are_named(
    tmp_path: Path, run, monkeypatch, name: str, module: str, file: str
) -> None:
    monkeypatch.setattr("memtool.data.sources.find_spec", lambda name: name)

    def offline(*args: object, **options: object) -> None:
        print("Downloading")
        raise URLError("no route to host")

    download = "download_url" if name == "svhn" else "download_and_extract_archive"
    monkeypatch.setattr(f"torchvision.datasets.{module}.{download}", offline)
    result = run(
        "make-noisy", name, "-r", "5%", "-o", tmp_path / "x.safetensors", "--data-dir", tmp_path
    )
    assert (result.code, result.stdout) == (1, "")
    assert file in result.stderr and str(tmp_path) in result.stderr
    assert "no route to host" in result.stderr and "MEMTOOL_DATA" in result.stderr
    assert result.stderr.count("\n") == 1


def test_downloads_to_one_folder_wait_for_each_other(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    other = os.open(tmp_path, os.O_RDONLY)
    with sources._locked(tmp_path), pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


# In commands


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory, run) -> Path:
    """A checkpoint trained on half of a flat folder of 10x12 images, brought to 8x8."""
    root = tmp_path_factory.mktemp("flat")
    for label in range(2):
        (root / f"images/{label}").mkdir(parents=True)
        for number in range(20):
            image = picture(10, 12, 20 * label + number)
            image.save(root / f"images/{label}/{number:02d}.png")
    labels = run(
        *(
            "make-noisy",
            f"folder:{root / 'images'}",
            "-r",
            "50%",
            "-o",
            root / "labels.safetensors",
        ),
        *("--image-size", 8, "--split-at", "50%"),
    )
    assert labels.code == 0, labels.stderr
    result = run(
        *("train", "--model", "digits-cnn", "--labels", root / "labels.safetensors"),
        *("--epochs", 1, "-o", root / "a.safetensors"),
    )
    assert result.code == 0, result.stderr
    return root / "a.safetensors"


def test_a_checkpoint_says_how_its_images_are_loaded(folder_run: Path, run) -> None:
    result = run("cka", folder_run, folder_run, "--layers", "block1", "--format", "jsonl")
    assert result.code == 0, result.stderr
    assert '"n": 20' in result.stdout
    stitched = run("stitch", folder_run, folder_run, "--at", "block2", "--epochs", 0)
    assert stitched.code == 0, stitched.stderr
    few = run("cka", folder_run, folder_run, "--layers", "block1", "--samples", 6, "--format=jsonl")
    assert '"n": 6' in few.stdout


def test_images_of_another_shape_are_refused(folder_run: Path, run) -> None:
    result = run("cka", folder_run, folder_run, "--data", "digits")
    assert result.code == 1
    assert "(3, 8, 8)" in result.stderr and "(1, 8, 8)" in result.stderr


def test_stitching_refuses_another_number_of_classes(folder_run: Path, run, folder: Path) -> None:
    comparing = run(
        "cka", folder_run, folder_run, "--data", f"folder:{folder}", "--layers", "block1"
    )
    assert comparing.code == 0, comparing.stderr
    result = run("stitch", folder_run, folder_run, "--data", f"folder:{folder}", "--epochs", 0)
    assert result.code == 1
    assert "2 classes" in result.stderr and "has 4" in result.stderr


def test_training_refuses_a_model_with_another_number_of_classes(tmp_path: Path, run) -> None:
    model = "digits-cnn?num_classes=5"
    result = run("train", "--model", model, "--data", "digits", "-o", tmp_path / "x.safetensors")
    assert result.code == 1
    assert "has 5 classes, digits has 10" in result.stderr


def test_a_data_set_that_changed_is_noticed(folder_run: Path, run) -> None:
    image = folder_run.parent / "images/0/00.png"
    before = image.read_bytes()
    picture(10, 12, 99).save(image)
    result = run("cka", folder_run, folder_run)
    image.write_bytes(before)
    assert result.code == 1
    assert "has changed since" in result.stderr


def test_a_checkpoint_without_a_data_set_asks_for_one() -> None:
    from memtool.cli import options

    unknown = SimpleNamespace(path=Path("a.safetensors"), data={})
    with pytest.raises(MemtoolError, match="a.safetensors: .*--data"):
        options.load_dataset(None, unknown, None)
    found = options.load_dataset("digits", unknown, None, samples=30)
    assert (found.name, len(found.test)) == ("digits?samples=30", 30)
