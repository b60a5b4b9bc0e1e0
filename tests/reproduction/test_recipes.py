"""Recipes: what they name exists."""

import json
import shlex

import pytest

from memtool.reproduction import FIGURES, RECIPES, Study


def test_every_study_has_a_recipe():
    assert set(RECIPES) == set(Study)


@pytest.mark.parametrize("study", Study)
def test_training_saves_the_checkpoints_that_are_compared(run, tmp_path, study):
    recipe = RECIPES[study]
    options = [*shlex.split(recipe.train), "--data", recipe.data, "--dry-run"]
    described = run("train", *options, "-o", tmp_path / "r.safetensors")
    assert described.code == 0
    epochs = json.loads(described.stdout)["training"]["epochs"]
    assert max(recipe.epochs) <= epochs and "--save-every 1" in recipe.train
    assert 0 in recipe.ratios  # the clean model


@pytest.mark.parametrize("kind", FIGURES)
def test_every_figure_is_of_a_kind_that_plot_knows(run, tmp_path, kind):
    table = tmp_path / "none.csv"
    result = run("plot", kind, table, "-o", tmp_path / "figure.pdf")
    # Another word would itself be taken for the path of a table.
    assert result.stderr == f"memtool: error: {table}: no such file\n"
