"""What a training run takes where nothing else is said; without torch, for help texts.

The residual networks and the CNN have the published protocol closest to the paper's (Maini et al.:
Can Neural Network Memorization Be Localized?, ICML 2023); all other networks that of the digits.
"""

from collections.abc import Mapping
from dataclasses import fields
from math import log2
from typing import Any

from memtool.training.settings import Augment, Optimizer, Schedule, TrainConfig

PROTOCOL: Mapping[str, Any] = {
    "optimizer": Optimizer.sgd,
    "batch_size": 512,
    "schedule": Schedule.cosine,
    "epochs": 50,
}
NETWORKS = dict.fromkeys(("resnet18", "resnet34", "resnet50", "cnn"), PROTOCOL)
OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    Optimizer.sgd: {"learning_rate": 0.1, "weight_decay": 5e-4},
}
# The protocol has 100, of which measurements show that they are too few to learn labels with
# r = 67.5 %: tests/benchmarks/README.md.
AUGMENTED_EPOCHS = 200


def protocol_batch(images: int) -> int:
    """The protocol's batch for so many training images: 512, or for fewer than 50,000, for which
    that is too few steps, the power of two from 16 on with which an epoch has some 100.

    >>> protocol_batch(50_000), protocol_batch(5_000)
    (512, 64)
    """
    largest: int = PROTOCOL["batch_size"]
    return min(largest, max(16, 1 << max(0, round(log2(images / 100)))))


def config_for(model: str, images: int, **chosen: Any) -> TrainConfig:
    """The hyperparameters with which the model of that name is trained on so many images: those
    chosen and not None, then those of the network, then those of the optimizer, then those of every
    run.

    >>> config_for("resnet18", 50_000).learning_rate
    0.1
    >>> config_for("resnet18", 50_000, optimizer="adamw").learning_rate
    0.003
    """
    given = {name: value for name, value in chosen.items() if value is not None}
    network = dict(NETWORKS.get(model, {}))
    if network:
        network["batch_size"] = protocol_batch(images)
    if network and given.get("augment") == Augment.crop_flip:
        network["epochs"] = AUGMENTED_EPOCHS
    config = {**network, **given}
    by_optimizer = OPTIMIZERS.get(config.get("optimizer", TrainConfig.optimizer), {})
    return TrainConfig(**{**by_optimizer, **config})


def told(name: str) -> str:
    """The defaults of a hyperparameter in words, for a help text.

    >>> told("learning_rate"), told("schedule")
    ('0.003; 0.1 with sgd', 'linear; cosine for resnet18, resnet34, resnet50, cnn')
    """
    (field,) = [field for field in fields(TrainConfig) if field.name == name]
    result = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
    for optimizer, values in OPTIMIZERS.items():
        if name in values:
            result += f"; {values[name]:g} with {optimizer}"
    if name in PROTOCOL:
        result += f"; {PROTOCOL[name]} for {', '.join(NETWORKS)}"
    if name == "batch_size":
        result += ", less for fewer than 50,000 images"
    if name == "epochs":
        result += f", {AUGMENTED_EPOCHS} with --augment crop-flip"
    return result
