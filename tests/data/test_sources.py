"""Where data sets come from: the digits, torchvision, and names that are unknown."""

import hashlib
import io
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torchvision

from memtool import data
from memtool.data.cache import cache_folder
from memtool.data.sources import _checksums, default_folder
from memtool.data.spec import NAMES, TORCHVISION

DIGITS = "2fe6cbdd6dbeba3067b006f6ae10f8d4395174f3d3035313dfcf1b2c317ec18c"


def test_digits_are_a_fixed_split() -> None:
    digits = data.load("digits")
    assert (len(digits.train), len(digits.test), digits.image_shape) == (1297, 500, (1, 8, 8))
    assert np.bincount(digits.test.labels).tolist() == [50, 51, 49, 51, 50, 51, 50, 50, 48, 50]
    assert digits.fingerprint == DIGITS
    assert digits.train.images.max() == 16


def test_the_nearest_name_is_shown(tmp_path: Path, refused) -> None:
    assert "did you mean 'cifar100'" in refused("cifar-100")
    assert "did you mean 'fashion-mnist'" in refused("FashionMNIST")
    assert f"did you mean 'folder:{tmp_path}'" in refused(tmp_path)
    assert "fashion-mnist" in refused("")


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


def test_svhn_from_its_files(tmp_path: Path, trusting: None, monkeypatch, refused) -> None:
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


def test_another_of_torchvision_needs_its_line_alone(
    tmp_path: Path, monkeypatch, refused, run
) -> None:
    monkeypatch.setitem(TORCHVISION, "stl10", "STL10")
    monkeypatch.setattr(
        "torchvision.datasets.stl10.check_integrity", lambda path, md5: os.path.isfile(path)
    )

    def offline(*args: object, **options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.stl10.download_and_extract_archive", offline)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    told = refused("stl10", folder=tmp_path)
    assert "no route to host" in told and "stl10_binary.tar.gz" in told
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 96), dtype=np.uint8)
    (folder / "class_names.txt").write_text("".join(f"class {i}\n" for i in range(10)))
    (folder / "unlabeled_X.bin").touch()
    for part in ("train", "test"):
        pixels.transpose(0, 1, 3, 2).tofile(folder / f"{part}_X.bin")  # columns first
        np.array([10, 1], dtype=np.uint8).tofile(folder / f"{part}_y.bin")
    found = data.load("stl10", tmp_path)
    assert (found.train.images == pixels).all() and found.test.labels.tolist() == [9, 0]
    assert found.classes[9] == "class 9"


def test_a_cause_is_told_whatever_torchvision_lists_of_files(
    tmp_path: Path, monkeypatch, refused
) -> None:
    class Unlisted:
        def __init__(self, root: Path, split: str, download: bool) -> None:
            raise ValueError(f"no split {split!r}")

    monkeypatch.setattr(torchvision.datasets, "Unlisted", Unlisted, raising=False)
    monkeypatch.setitem(TORCHVISION, "unlisted", "Unlisted")
    assert "(no split 'train'); put there its files" in refused("unlisted", folder=tmp_path)


def test_every_name_is_among_those_that_are_near(monkeypatch, refused) -> None:
    monkeypatch.setattr("memtool.data.sources.NAMES", (*NAMES, "thirdparty"))
    assert "did you mean 'thirdparty'" in refused("thirdpart")


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


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python/train"),
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte.gz"),
        ("svhn", "test_32x32.mat"),
    ],
)
def test_files_of_other_content_are_named_with_both_sums(
    tmp_path: Path, monkeypatch, refused, name: str, file: str
) -> None:
    def offline(*args: object, **options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("memtool.data.sources.find_spec", lambda name: name)
    for module in ("cifar", "mnist"):
        target = f"torchvision.datasets.{module}.download_and_extract_archive"
        monkeypatch.setattr(target, offline)
    monkeypatch.setattr("torchvision.datasets.svhn.download_url", offline)
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"cut short")
    kind = getattr(torchvision.datasets, TORCHVISION[name])
    sums = _checksums(kind)
    told = refused(name, folder=tmp_path)
    found = hashlib.md5(b"cut short").hexdigest()
    assert f"{path} has the MD5 sum {found}, not {sums[file]}" in told
    assert len(sums[file]) == 32 and told.count("MD5 sum") == 1


def test_fewer_labels_than_images_are_refused(tmp_path: Path, refused) -> None:
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    pixels = np.zeros((20, 28, 28), dtype=np.uint8)
    for part, count in (("train", 18), ("t10k", 20)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    assert "mnist: has 20 images, but 18 labels" in refused("mnist", folder=tmp_path)


@pytest.mark.parametrize(
    ("height", "label", "told"),
    [(28, 205, "205 is no label from 0 to 9"), (30, 0, "(1, 28, 28) to train and ")],
)
def test_files_of_something_else_are_refused(
    tmp_path: Path, refused, height: int, label: int, told: str
) -> None:
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for part, rows in (("train", 28), ("t10k", height)):
        pixels, labels = np.zeros((20, rows, 28), np.uint8), np.full(20, label, np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    assert f"mnist: its files in {tmp_path} are damaged" in (
        line := refused("mnist", folder=tmp_path)
    )
    assert told in line


def test_downloads_to_one_folder_wait_for_each_other(tmp_path: Path, monkeypatch, refused) -> None:
    fcntl = pytest.importorskip("fcntl")
    tried = []

    def offline(*args: object, **options: object) -> None:
        other = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
        tried.append(True)
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    assert "no route to host" in refused("cifar10", folder=tmp_path)
    assert tried
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "level", "shown"),
    [(Terminal, "INFO", True), (Terminal, "WARNING", False), (io.StringIO, "INFO", False)],
    ids=["terminal", "quiet", "log"],
)
def test_a_terminal_sees_the_download_where_notes_are_shown(
    tmp_path: Path, monkeypatch, caplog, capfd, refused, stream: type, level: str, shown: bool
) -> None:
    def offline(*args: object, **options: object) -> None:
        print("Downloading")
        print("50%", file=sys.stderr)
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    caplog.set_level(level, logger="memtool")
    monkeypatch.setattr(sys, "stderr", stream())
    refused("cifar10", folder=tmp_path)
    assert sys.stderr.getvalue() == ("Downloading\n50%\n" if shown else "")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", NAMES)
def test_every_name_that_is_listed_is_known(tmp_path: Path, monkeypatch, refused, name) -> None:
    def offline(*args: object, **options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("memtool.data.sources.find_spec", lambda name: name)
    monkeypatch.chdir(tmp_path)
    told = "" if name == "digits" else refused(name, folder=tmp_path)
    assert "unknown data set" not in told


def test_downloads_go_to_the_folder_that_the_environment_names(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MEMTOOL_DATA", str(tmp_path / "data"))
    assert default_folder() == tmp_path / "data"
    monkeypatch.setenv("MEMTOOL_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "memtool"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache/memtool"


def test_a_tilde_in_the_environment_is_the_home(tmp_path, monkeypatch, refused) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MEMTOOL_DATA", "~/data")
    monkeypatch.setenv("MEMTOOL_CACHE", "~/cache")
    assert (default_folder(), cache_folder()) == (tmp_path / "home/data", tmp_path / "home/cache")
    assert "~nobody" in refused("folder:~nobody-of-that-name/x")
