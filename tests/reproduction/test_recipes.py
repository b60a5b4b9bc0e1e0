"""Recipes: what they name exists, and what is chosen takes the place of their own."""

import json
from pathlib import Path

import pytest

from memtool import MemtoolError
from memtool.reproduction import FIGURES, RECIPES, Recipe, Study, chosen_recipe, steps_for

NOTHING = (None, None, False, None, None)  # data, model, small, training images, checkpoints
CIFAR = RECIPES[Study.cifar10]


def test_every_study_has_a_recipe():
    assert set(RECIPES) == set(Study)
    for recipe in RECIPES.values():
        assert 0 in recipe.ratios  # the clean model
        assert 0 < len(recipe.saved) < 25 and max(recipe.saved) < recipe.epochs


def test_the_papers_own_networks_are_trained_as_by_default(run, folder, tmp_path):
    """The protocol of memtool train, on a data set that is there."""
    for study, epochs in ((Study.digits, 20), (Study.cifar10, 50), (Study.svhn, 50)):
        recipe = RECIPES[study]
        options = ("--model", recipe.model, "--data", f"folder:{folder}", "--dry-run")
        described = json.loads(run("train", *options, "-o", tmp_path / "r.safetensors").stdout)
        assert described["training"]["epochs"] == recipe.epochs == epochs
        assert recipe.train == ""


@pytest.mark.parametrize("rule", FIGURES, ids=lambda rule: rule.kind)
def test_every_figure_is_of_a_kind_that_plot_knows(run, tmp_path, rule):
    table = tmp_path / "none.csv"
    words = rule.command.split()
    plot = words[: words.index("$^")]
    result = run(*plot, table, "-o", tmp_path / "figure.pdf")
    # Another word would itself be taken for the path of a table.
    assert result.stderr == f"memtool: error: {table}: no such file\n"


def test_other_epochs_have_other_checkpoints():
    assert CIFAR.saved == tuple(range(2, 50, 2))
    assert CIFAR.but(epochs=10).saved == tuple(range(1, 10))
    assert CIFAR.but(epochs=100).saved == tuple(range(4, 100, 4))
    assert chosen_recipe(Study.cifar10, *NOTHING[:-1], 25).saved == (25,)
    assert CIFAR.but(saved=[0, 1, 8, 50]).saved == (0, 1, 8)
    with pytest.raises(MemtoolError, match="--save-at 60: the runs have 50 epochs"):
        CIFAR.but(saved=[60])


def test_the_clean_network_is_always_there():
    assert CIFAR.but(ratios=[50.0, 37.5]).ratios == (0, 37.5, 50)


def test_small_is_a_reduction_of_any_recipe():
    small = chosen_recipe(Study.cifar10, "folder:x?image_size=32", None, True, None, None)
    assert small == CIFAR.but(
        data="folder:x?image_size=32&samples_train=5000",
        model="resnet18?width=16",
        ratios=(0, 25, 50),
        layers="relu,layer?.?,avgpool,fc",
        samples=2000,
    )
    assert RECIPES[Study.svhn].small().model == "cnn?width=16"
    theirs = chosen_recipe(Study.cifar10, None, "torchvision:resnet18", True, None, None)
    assert (theirs.model, theirs.layers) == ("torchvision:resnet18", small.layers)
    own = chosen_recipe(None, "folder:x", "timm:vit_tiny_patch16_224", True, None, None)
    assert (own.model, own.layers) == ("timm:vit_tiny_patch16_224", "all")
    assert (
        chosen_recipe(None, "x.npz", "resnet18?width=8", *NOTHING[2:]).small().model.endswith("8")
    )


def test_what_is_chosen_counts_more_than_what_is_small():
    found = chosen_recipe(
        *(Study.svhn, None, None, True, 100, 10),
        **{"samples": 50, "ratios": [0, 50], "train": "--batch-size 16"},
    )
    assert found.ratios == (0, 50) and found.saved == (10, 20, 30, 40)
    assert found.data == "svhn?samples_train=100" and found.samples == 50
    assert found.train == "--batch-size 16"


def test_other_options_of_cka_leave_the_number_of_test_images_as_it_is():
    options = "--estimator unbiased"
    found = chosen_recipe(Study.cifar10, None, None, True, None, None, cka=options)
    compared = [step for step in steps_for(found, Path()) if step.words[0] == "cka"]
    assert compared and all(f"{options} --samples 2000 " in step.command for step in compared)


def test_another_model_is_trained_as_it_is_by_default():
    found = chosen_recipe(Study.cifar10, None, "torchvision:resnet50", *NOTHING[2:])
    assert (found.data, found.epochs, found.cuts) == ("cifar10", 20, "all")
    narrow = chosen_recipe(Study.cifar10, None, "resnet18?width=8", *NOTHING[2:])
    assert narrow == CIFAR.but(model="resnet18?width=8")


def test_without_a_study_data_and_model_are_needed():
    assert chosen_recipe(None, "x.npz", "cnn", *NOTHING[2:]) == Recipe.of("x.npz", "cnn")
    with pytest.raises(MemtoolError, match="name a study .digits, cifar10, svhn., or --data and"):
        chosen_recipe(None, "x.npz", *NOTHING[1:])


def test_choices_are_json():
    assert json.loads(json.dumps(CIFAR.json())) == CIFAR.json()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"ratios": range(101)}, "--ratios: 101 are more than 100"),
        ({"stitch": "--init 'random"}, '--stitch "--init \'random": no closing quotation'),
    ],
)
def test_choices_that_no_report_or_shell_could_read_are_refused(chosen, message):
    with pytest.raises(MemtoolError, match=message):
        CIFAR.but(**chosen)


def test_augmented_images_are_trained_on_for_the_epochs_of_memtool_train():
    for options in ("--augment crop-flip", "--augment=crop-flip"):
        assert chosen_recipe(Study.cifar10, *NOTHING, train=options).epochs == 200
        assert chosen_recipe(Study.digits, *NOTHING, train=options).epochs == 20
        assert chosen_recipe(Study.cifar10, *NOTHING, train=options, epochs=30).epochs == 30


@pytest.mark.parametrize(
    "command, options, name",
    [
        ("train", "--epochs 3", "--epochs"),
        ("cka", "--layers=fc", "--layers"),
        ("cka", "--pairs all", "--pairs"),
        ("cka", "--samples 9", "--samples"),
        ("stitch", "-o x", "-o"),
    ],
)
def test_what_the_steps_set_themselves_is_refused(command, options, name):
    with pytest.raises(MemtoolError, match=f"reproduce sets {name} itself"):
        CIFAR.but(**{command: options})
