"""What a run takes where nothing is said."""

import pytest

from memtool.models import OURS
from memtool.training import Augment, Optimizer, Schedule, TrainConfig
from memtool.training.defaults import NETWORKS, config_for, told


def test_networks_of_the_paper_have_the_published_protocol_with_more_epochs_if_augmented():
    for name in ("resnet18", "cnn"):
        assert config_for(name, 50_000, seed=3) == TrainConfig(
            epochs=50,
            batch_size=512,
            optimizer=Optimizer.sgd,
            learning_rate=0.1,
            weight_decay=5e-4,
            schedule=Schedule.cosine,
            warmup=0.1,
            seed=3,
        )
        assert config_for(name, 50_000, augment=Augment.crop_flip).epochs == 200


@pytest.mark.parametrize("name", ["digits-cnn", "torchvision:resnet18", "net.py:make"])
def test_all_others_have_that_of_the_digits(name):
    assert config_for(name, 50_000) == TrainConfig()
    assert config_for(name, 50_000, augment=Augment.crop_flip).epochs == TrainConfig.epochs


def test_what_is_chosen_counts_and_an_optimizer_brings_its_own_rates():
    config = config_for("resnet18", 50_000, optimizer=Optimizer.adamw, epochs=3, clip_norm=None)
    assert (config.learning_rate, config.weight_decay, config.epochs) == (3e-3, 0.01, 3)
    config = config_for("digits-cnn", 50_000, optimizer=Optimizer.sgd, weight_decay=0.0)
    assert (config.learning_rate, config.weight_decay, config.batch_size) == (0.1, 0.0, 64)
    assert config_for("resnet18", 50_000, augment=Augment.crop_flip, epochs=7).epochs == 7


def test_defaults_are_told_as_they_are():
    assert set(NETWORKS) <= set(OURS)
    assert told("weight_decay") == "0.01; 0.0005 with sgd"
    assert told("batch_size").startswith("64; 512 for resnet18, resnet34, resnet50, cnn, less")
    assert told("epochs").endswith(", 200 with --augment crop-flip")


@pytest.mark.parametrize(
    "images, batch",
    [(73_257, 512), (50_000, 512), (20_000, 256), (5_000, 64), (1_000, 16), (2, 16)],
)
def test_small_data_sets_have_small_batches(images, batch):
    assert config_for("resnet18", images).batch_size == batch
    assert config_for("digits-cnn", images).batch_size == 64
    assert config_for("cnn", images, batch_size=7).batch_size == 7
