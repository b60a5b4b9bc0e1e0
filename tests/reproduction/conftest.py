"""A reproduction that takes seconds."""

from pathlib import Path

import pytest

from memtool.reproduction import Recipe, steps_for

TINY = Recipe(
    data="digits",
    train="--model digits-cnn --epochs 2 --save-every 1",
    epochs=(1, 2),
    layers="block1,fc",
    cuts="block2",
    ratios=(0,),
)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The steps for one noise ratio, two epochs, two layers and one cut, below ./out."""
    monkeypatch.chdir(tmp_path)
    return steps_for(TINY, Path("out"), seeds=1)
