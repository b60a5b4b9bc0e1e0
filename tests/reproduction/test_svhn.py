"""The recipe of SVHN on files in its own format, few and small."""

import os

import numpy as np
import pytest

from memtool.checkpoints import Checkpoint
from memtool.reproduction import RECIPES, Study, chosen_recipe, steps_for
from memtool.tables import read

io = pytest.importorskip("scipy.io", reason="scipy reads the files of SVHN")


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    """Forty training and twenty test images; torchvision does without its checksums."""
    folder = tmp_path / "svhn"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 20)):
        labels = np.arange(count, dtype=np.uint8)[:, None] % 10 + 1  # 10 stands for the digit 0
        images = generator.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        images[:8] = 25 * labels[:, 0]  # which tells the classes apart
        io.savemat(folder / f"{part}_32x32.mat", {"X": images, "y": labels})
    is_there = lambda path, md5=None: os.path.isfile(path)  # noqa: E731
    for module in ("svhn", "utils"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", is_there)
    monkeypatch.setenv("MEMTOOL_DATA", str(folder))


def test_the_recipe_of_svhn_up_to_its_tables(run, tmp_path, svhn):
    recipe = chosen_recipe(
        *(Study.svhn, None, "cnn?width=2", False, 30, None),
        samples=15,
        epochs=2,
        ratios=[0, 50],
        cuts="block4",
        layers="block?,fc",
    )
    chosen = {"epochs": 2, "ratios": [0, 50], "cuts": "block4", "samples": 15}
    assert recipe == RECIPES[Study.svhn].but(
        data="svhn?samples_train=30", model="cnn?width=2", **chosen
    )
    for step in steps_for(recipe, tmp_path):
        if step.words[0] != "plot":
            result = run(*step.arguments)
            assert result.code == 0, result.stderr
    checkpoint = Checkpoint.open(tmp_path / "runs/r50-s0.safetensors")
    assert checkpoint.data["name"] == "svhn?samples_train=30"
    assert (checkpoint.data["train"], checkpoint.data["test"]) == (30, 20)
    assert checkpoint.provenance.noise_ratio == 0.5
    rows = read(tmp_path / "tables/cka-r50-s0.csv")
    assert {row["n"] for row in rows} == {15}
    epochs = [1, 2, 1, 2]  # to its own final model, then to the clean one
    assert sorted(row["epoch"] for row in rows if row["layer"] == "fc") == sorted(epochs)
    supplement = read(tmp_path / "tables/supplement-r50-s0.csv")
    assert {(row["front_noise_ratio"], row["back_noise_ratio"]) for row in supplement} == {
        (0.5, 0.0),
        (0.0, 0.5),
        (0.5, 0.5),
    }
