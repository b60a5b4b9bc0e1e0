"""A reproduction that takes seconds."""

from dataclasses import replace
from pathlib import Path

import pytest

from memtool.reproduction import RECIPES, Record, Study, steps_for

TINY = replace(
    RECIPES[Study.digits], epochs=2, saved=(1,), layers="block1,fc", cuts="block2", ratios=(0,)
)


@pytest.fixture
def tiny_recipe():
    """One noise ratio, two epochs, two layers and one cut."""
    return TINY


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The steps of the tiny recipe, below ./out."""
    monkeypatch.chdir(tmp_path)
    return steps_for(TINY, Path("out"))


@pytest.fixture
def record(tmp_path):
    """Of no steps yet."""
    return Record(tmp_path / "steps.csv")
