"""A small task and a model that can learn it."""

import numpy as np
import torch
from torch import nn

from memtool.data import normalize
from memtool.training import Task


def small_task(examples: int = 48, wrong: int = 16) -> Task:
    """Bright and dark images; the given labels of the first `wrong` are the other class."""
    generator = np.random.default_rng(0)
    true = torch.arange(examples) % 2
    images = generator.integers(0, 100, (examples, 1, 4, 4), dtype=np.uint8)
    images = torch.from_numpy(images) + 100 * true.byte().view(-1, 1, 1, 1)
    given = true.clone()
    given[:wrong] = 1 - given[:wrong]
    return Task(
        *(images, given, true, images[::3], true[::3], 2),
        normalize=lambda some: normalize(some, [0.4], [0.2]),
        batch_size=20,
    )


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, 2),
    )
