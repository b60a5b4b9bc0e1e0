"""A model of one's own, with layers that have no CKA and one cut, from the labels to the report."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memtool.cli import main
from memtool.reproduction import Record, adopt_trained, chosen_recipe, steps_for
from memtool.tables import read

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Linear(64, 16)
        self.bright, self.dark = nn.Linear(16, 16), nn.Linear(16, 16)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, images):
        x = self.stem(images.flatten(1))
        best = x.sum(1) > 0
        return self.fc(x.index_put((best,), self.bright(x[best])).relu())
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return "net.py:Net"


def test_it_is_reproduced(run, tmp_path, own, monkeypatch):
    command = ("--data", "digits", "--model", own, "--samples-train", 60, "--samples", 40)
    command += ("--ratios", "0,50%", "--epochs", 2, "-o", tmp_path / "out")
    recipe = chosen_recipe(
        *(None, "digits", own, False, 60, None),
        **{"samples": 40, "epochs": 2, "ratios": [0, 50], "cuts": "all"},
    )
    for step in steps_for(replace(recipe, saved=(1,)), tmp_path / "out"):
        result = run(*step.arguments)
        assert result.code == 0, result.stderr
    rows = read(tmp_path / "out/tables/cka-r50-s0.csv")
    assert {row["layer"]: row["cka"] is not None for row in rows} == {
        "stem": True,
        "bright": False,
        "fc": True,
    }
    cuts = read(tmp_path / "out/tables/stitching-r50-s0.csv")
    assert {row["front_layer"] for row in cuts} == {"stem"}
    result = run("reproduce", *command, "--cuts", "all", "--save-at", 1)
    assert result.code == 0, result.stderr
    assert "train r0" not in result.stderr  # all was done
    spelled = [str(tmp_path / own) if word == own else word for word in command]
    result = run("reproduce", *spelled, "--cuts", "all", "--save-at", 1, "--dry-run")
    assert (result.code, result.stdout) == (0, "")  # by another path to the same file
    monkeypatch.chdir(tmp_path / "out")
    result = run("reproduce", *spelled, "--cuts", "all", "--save-at", 1, "--dry-run")
    assert result.code == 1 and f"was made in {tmp_path}, with --model {own};" in result.stderr
    monkeypatch.chdir(tmp_path)
    assert len(read(tmp_path / "out/findings.csv")) > 10
    assert "<svg" in (tmp_path / "out/report.html").read_text()
    (tmp_path / "net.py").write_text(NET.replace("x.sum(1) > 0", "x.sum(1) > 1"))
    result = run("reproduce", *command, "--cuts", "all", "--save-at", 1)
    assert result.code == 1 and result.stderr.count("\n") == 1
    assert "r0-s0.safetensors: was not trained with net.py as it is now" in result.stderr


def test_runs_that_no_record_knows_are_compared_with_what_is_chosen(run, tmp_path, monkeypatch):
    """As after `make`, or where the record is lost; and what is trained on may have changed."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)

    def write():
        labels = np.arange(40) % 2
        arrays = {
            part: generator.integers(0, 256, (40, 8, 8), np.uint8) for part in ("train", "test")
        }
        images = {f"{part}_images": array for part, array in arrays.items()}
        np.savez("x.npz", **images, train_labels=labels, test_labels=labels)

    write()
    command = ("--data", "x.npz", "--model", "digits-cnn", "--ratios", "0")
    options = {"epochs": 1, "ratios": [0]}
    recipe = chosen_recipe(None, "x.npz", "digits-cnn", False, None, None, **options)
    for step in steps_for(recipe, Path("out"))[:2]:
        assert run(*step.arguments).code == 0
    training, record = steps_for(recipe, Path("out"))[1], Record(Path("out/steps.csv"))
    record.keep(replace(training, words=(*training.words, "--batch-size", "8")))  # make's was later
    adopt_trained([training], record, main)
    assert record.commands == {training.key: training.recorded}
    changed = replace(training, words=(*training.words, "--batch-size", "8"))
    adopt_trained([changed], record, main)
    assert changed.is_stale(record.commands)
    record.path.unlink()
    other = run("reproduce", *command, "--epochs", 1, "--train", "--batch-size 8", "-o", "out")
    assert other.code == 1 and "training.batch_size was" in other.stderr
    write()
    changed = run("reproduce", *command, "--epochs", 1, "-o", "out")
    assert changed.code == 1 and changed.stderr.count("\n") == 1
    assert "r0-s0.safetensors: was not trained with x.npz as it is now" in changed.stderr
    Path("x.npz").unlink()  # results are read where their data are not
    assert run("reproduce", *command, "--epochs", 1, "-o", "out", "--dry-run").code == 0
