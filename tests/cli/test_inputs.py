"""What commands take in: the data set, typed or on record, and the models that a table names."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint
from memtool.cli import inputs


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

    unknown = SimpleNamespace(path=Path("a.safetensors"), data={}, preprocessing={})
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
