"""What commands take in: the data set, typed or on record, and the models that a table names."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memtool import MemtoolError, data
from memtool.checkpoints import Checkpoint
from memtool.cli import inputs
from memtool.data import Dataset
from memtool.models import ModelSpec


def picture(height: int, width: int, seed: int = 0, channels: int = 3) -> Image.Image:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


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
    metadata = {"data": {}, "training": {}}
    unknown = Checkpoint(Path("a.safetensors"), metadata, ModelSpec("digits-cnn", {}), {}, {})
    with pytest.raises(MemtoolError, match="a.safetensors: .*--data"):
        inputs.load_dataset(None, unknown, None, "4GiB")
    found = inputs.load_dataset("digits", unknown, None, "4GiB", samples=30)
    assert (found.name, len(found.test)) == ("digits?samples=30", 30)


def test_every_checkpoint_gets_images_of_its_own_shape(folder_run: Path, run, runs) -> None:
    for files in ((runs.clean, folder_run), (folder_run, runs.clean)):
        result = run("cka", *files, "--layers", "block1", "--data", "digits")
        assert result.code == 1 and result.stderr.count("\n") == 1
        assert f"{folder_run}: takes" in result.stderr and "'digits?channels=3'" in result.stderr
    sized = run("cka", runs.clean, runs.clean, "--data", "digits?image_size=6")
    assert "(1, 6, 6) (--image-size 8 makes them so)" in sized.stderr


def test_a_normalization_that_is_not_taken_is_told(runs, run) -> None:
    command = ("cka", runs.clean, runs.clean, "--layers", "fc", "--data", "digits?mean=0.5&std=0.5")
    result = run(*command)
    assert (
        result.code == 0 and result.stderr.count("r0.safetensors: was trained with the mean") == 1
    )
    assert "which is taken, not the [0.5] that digits?mean=0.5&std=0.5 says" in result.stderr


def test_stitched_models_are_found_where_their_table_has_been_moved_with_them(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["out/stitched/run/a.safetensors", "elsewhere/b.safetensors"]
    for name in (*names, "moved/stitched/run/a.safetensors", "moved/b.safetensors"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("moved/tables").mkdir()
    Path("moved/tables/s.csv").write_text("stitched\n" + "\n".join(names) + "\n")
    found = inputs.named_models([Path("moved/tables/s.csv"), Path("c.safetensors")])
    assert [str(path) for path in found] == [
        "moved/stitched/run/a.safetensors",
        "elsewhere/b.safetensors",  # the name alone tells too little
        "c.safetensors",
    ]


def files(*contents: tuple[str, str]) -> None:
    for name, content in contents:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)


@pytest.mark.parametrize("table", ["results/t.csv", "results/tables/t.csv"])
@pytest.mark.parametrize("other", ["results/a/x.safetensors", "results/models/a/x.safetensors"])
def test_of_stitched_models_that_differ_none_is_taken(
    tmp_path: Path, monkeypatch, table: str, other: str
) -> None:
    monkeypatch.chdir(tmp_path)
    named = "models/a/x.safetensors"
    files((table, f"stitched\n{named}\n"), (named, "one"), (other, "two"))
    with pytest.raises(MemtoolError, match=f"names {named}, and {other}, which lies beside the"):
        inputs.named_models([Path(table)])
    files((other, "one"))
    assert inputs.named_models([Path(table)]) == [Path(other)]
    Path(other).unlink()
    assert inputs.named_models([Path(table)]) == [Path(named)]


@pytest.mark.parametrize("root", ["", "ROOT/"])
def test_stitched_models_in_the_place_that_is_named_are_taken(tmp_path, monkeypatch, root) -> None:
    monkeypatch.chdir(tmp_path)
    named = f"{root}out/a/x.safetensors".replace("ROOT", str(tmp_path))
    files((named, "one"), ("a/x.safetensors", "two"), ("t.csv", f"stitched\n{named}\n"))
    (found,) = inputs.named_models([Path("t.csv")])
    assert found.samefile("out/a/x.safetensors")


def test_a_sample_of_deep_images_has_the_bits_that_all_had(tmp_path: Path, run) -> None:
    for part, top in (("train", 4000), ("test", 900)):  # the latter alone would be 10 bits
        for label in range(2):
            (tmp_path / f"deep/{part}/{label}").mkdir(parents=True)
            for number in range(4):
                pixels = np.linspace(number, top, 64).reshape(8, 8).astype(np.uint16)
                Image.fromarray(pixels).save(tmp_path / f"deep/{part}/{label}/{number}.png")
    spec, file = f"folder:{tmp_path / 'deep'}", tmp_path / "a.safetensors"
    trained = run("train", "--model", "digits-cnn", "--data", spec, "--epochs", 0, "-o", file)
    assert trained.code == 0, trained.stderr
    checkpoint = Checkpoint.open(file)
    whole = inputs.load_dataset(None, checkpoint, None, "4GiB").test.images
    for typed, samples in ((None, 4), (spec, 4), (None, 8), (None, 50)):
        found = inputs.load_dataset(typed, checkpoint, None, "4GiB", samples=samples)
        assert found.name.endswith(f"?samples={samples}&bits=12")
        assert {bytes(image) for image in found.test.images} <= {bytes(image) for image in whole}
    with pytest.raises(MemtoolError, match="part of them does not tell"):
        inputs.load_dataset(f"{spec}?image_size=4", checkpoint, None, "4GiB", samples=4)


def recorded(
    path: str, name: str, classes: str = "ab", known: Dataset | None = None, **data: object
) -> Checkpoint:
    """A checkpoint that says no more than what it was trained on: images of one channel, 8x8."""
    own = known.metadata() if known else {"classes": list(classes)}
    data = {**own, "name": name, "image_shape": [1, 8, 8], **data}
    metadata = {"data": data, "training": {}}
    return Checkpoint(Path(path), metadata, ModelSpec("digits-cnn", {}), {}, {})


def flat(root: Path, classes: str = "ab", top: int = 255) -> str:
    """The spec of a folder with four gray images of each class, whose values go up to `top`."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.linspace(label + number, top, 64).reshape(8, 8)
            Image.fromarray(pixels.astype("u1" if top < 256 else "u2")).save(
                root / f"{name}/{number}.png"
            )
    return f"folder:{root}"


def warnings_of(caplog, spec: str | None, *checkpoints: Checkpoint, **flags: object) -> list[str]:
    caplog.clear()
    *others, last = checkpoints
    with caplog.at_level(logging.WARNING, "memtool"):
        inputs.load_dataset(spec, last, None, "4GiB", others=others, **flags)
    return caplog.messages


def test_networks_of_images_prepared_otherwise_are_told_once(tmp_path: Path, caplog) -> None:
    spec = flat(tmp_path / "f")
    plain, alike = recorded("a", spec), recorded("b", f"{spec}?image_size=8")
    cropped = recorded("c", f"{spec}?image_size=8&crop_pct=0.5")
    upright = recorded("d", f"{spec}?orient=true")
    same = recorded("e", f"{spec}?crop_mode=center&interpolation=bilinear&image_size=8&crop_pct=.5")
    otherwise = f"trained on images that were prepared otherwise than those of {spec}"
    assert warnings_of(caplog, spec, alike, plain) == []
    assert warnings_of(caplog, spec, cropped, same, upright, plain) == [
        f"c, e: {otherwise}: crop_pct=0.5, crop_mode=center, interpolation=bilinear",
        f"d: {otherwise}: orient=True",
    ]
    (told,) = warnings_of(caplog, None, plain, same, cropped)
    assert told.startswith("a: ") and told.endswith("no crop_pct, no crop_mode, no interpolation")


def test_a_data_set_that_is_typed_is_prepared_as_that_of_the_last_network(tmp_path: Path) -> None:
    spec = flat(tmp_path / "f")
    last = recorded("a", "folder:gone?image_size=8&crop_pct=0.5&split_at=50%")
    found = inputs.load_dataset(spec, last, None, "4GiB")
    assert found.name == f"{spec}?image_size=8&crop_pct=0.5"


def test_networks_of_images_with_other_bits_are_told(tmp_path: Path, caplog) -> None:
    spec = flat(tmp_path / "f", top=900)
    (told,) = warnings_of(caplog, spec, recorded("a", "folder:deep", bits=12))
    assert (
        told == f"a: trained on images that were prepared otherwise than those of {spec}: bits=12"
    )
    assert warnings_of(caplog, f"{spec}?bits=12", recorded("a", "folder:deep", bits=12)) == []


@pytest.mark.parametrize(
    "classes, told",
    [("ba", "class 0 is 'b', there 'a'"), ("abc", "3, there 2"), ("ac", "class 1 is 'c', there")],
)
def test_networks_of_other_classes_are_told(tmp_path, caplog, classes: str, told: str) -> None:
    spec = flat(tmp_path / "f")
    (warning,) = warnings_of(caplog, spec, recorded("a", "folder:x", classes), recorded("b", spec))
    assert warning.startswith(f"a: trained on other classes than those of {spec}: {told}")


def test_every_network_whose_data_set_has_changed_is_told(tmp_path: Path, caplog) -> None:
    root = tmp_path / "f"
    spec = flat(root)
    before = recorded("a", spec, known=data.load(spec))
    assert warnings_of(caplog, None, before, samples=2) == []
    (root / "b").rename(root / "c")
    with pytest.raises(MemtoolError, match=f"a: its data set '{spec}' has changed since"):
        inputs.load_dataset(None, before, None, "4GiB", samples=2)
    after = recorded("b", f"folder:{root}/", known=data.load(spec))
    assert warnings_of(caplog, None, before, after) == [
        f"a: trained on other classes than those of folder:{root}/: class 1 is 'b', there 'c'"
    ]
    (root / "c/3.png").unlink()
    assert warnings_of(caplog, spec, after) == [f"b: trained on {spec} before it changed"]
    with pytest.raises(MemtoolError, match="has changed since"):
        inputs.load_dataset(None, after, None, "4GiB", samples=2)
