"""Training: one loop, `optimize`, for classifiers and for stitching layers alike."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from memtool import MemtoolError
from memtool.layers import evaluating

EVALUATION_BATCH = 1024


class Schedule(StrEnum):
    """The learning rate over the run."""

    linear = "linear"  # up over the warm-up, then down to 0 at the end
    constant = "constant"  # up over the warm-up, then as it is


class Optimizer(StrEnum):
    adamw = "adamw"
    adam = "adam"
    sgd = "sgd"  # momentum 0.9, Nesterov


@dataclass(frozen=True)
class TrainConfig:
    """Hyperparameters. `warmup` is the fraction of all steps over which the rate rises."""

    epochs: int = 20
    batch_size: int = 64
    optimizer: Optimizer = Optimizer.adamw
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    schedule: Schedule = Schedule.linear
    warmup: float = 0.1
    seed: int = 0

    def steps_per_epoch(self, examples: int) -> int:
        """The last, smaller batch is a step too, unless it is a single example: batch norm cannot
        take the statistics of one, so it joins the batch before it."""
        return max(1, -(-(examples - 1) // self.batch_size)) if examples > 1 else 1

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at `step`, counted from 0, of `steps`."""
        rising = self.warmup * steps
        if step + 1 < rising:
            return self.learning_rate * (step + 1) / rising
        if self.schedule is Schedule.constant:
            return self.learning_rate
        return self.learning_rate * min(1.0, (steps - step) / max(1.0, steps - rising))


def make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    decay = config.weight_decay
    match config.optimizer:
        case Optimizer.adamw:
            return torch.optim.AdamW(parameters, weight_decay=decay, fused=True)
        case Optimizer.adam:
            return torch.optim.Adam(parameters, weight_decay=decay, fused=True)
        case Optimizer.sgd:
            return torch.optim.SGD(
                parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=decay, fused=True
            )


def optimize(
    forward: Callable[[Tensor], Tensor],
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    done: int = 0,
) -> Iterator[int]:
    """Minimize cross-entropy, epoch by epoch from epoch `done` + 1; yield each epoch's number.

    `forward` takes the indices of a batch, int64 (b,), and gives logits (b, classes); `labels` is
    int64 (n,). Torch's global generator is seeded from the seed and the epoch alone, so that a run
    which was stopped goes on as if it had not been. Nothing inside an epoch waits for the device.
    """
    per_epoch = config.steps_per_epoch(len(labels))
    for epoch in range(done + 1, config.epochs + 1):
        torch.manual_seed((config.seed << 20) + epoch)  # dropout draws from the global generator
        order = torch.randperm(len(labels)).to(labels.device)
        step = (epoch - 1) * per_epoch
        for number in range(per_epoch):
            last = number == per_epoch - 1
            start = number * config.batch_size
            batch = order[start:] if last else order[start : start + config.batch_size]
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step + number, config.epochs * per_epoch)
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(forward(batch), labels[batch]).backward()
            optimizer.step()
        yield epoch


@torch.no_grad()
def predict(forward: Callable[[Tensor], Tensor], examples: int, device: torch.device) -> Tensor:
    """Logits, (examples, classes), of all examples in order; `forward` as in `optimize`."""
    indices = torch.arange(examples, device=device)
    return torch.cat([forward(batch) for batch in indices.split(EVALUATION_BATCH)])


def accuracy(logits: Tensor, labels: Tensor) -> float | None:
    """The fraction of examples, in [0, 1], whose largest logit is their label; None of none."""
    return (logits.argmax(1) == labels).double().mean().item() if len(labels) else None


@dataclass(frozen=True)
class Task:
    """What a classifier is trained and tested on; all tensors on one device.

    Images are uint8 (n, c, h, w), labels int64 (n,); `normalize` makes float batches of uint8
    ones.
    """

    images: Tensor
    given: Tensor
    true: Tensor
    test_images: Tensor
    test_labels: Tensor
    normalize: Callable[[Tensor], Tensor]


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    config: TrainConfig,
    done: int = 0,
) -> Iterator[dict[str, Any]]:
    """Train `model` on the given labels; yield the metrics after each epoch."""

    def forward(batch: Tensor) -> Tensor:
        with torch.autocast(
            task.images.device.type, torch.bfloat16, enabled=task.images.device.type == "cuda"
        ):
            logits: Tensor = model(task.normalize(task.images[batch]))
        return logits.float()

    model.train()
    for epoch in optimize(forward, task.given, optimizer, config, done):
        metrics = evaluate(model, task)
        if not math.isfinite(metrics["loss"] or 0):
            raise MemtoolError(
                f"the loss is {metrics['loss']} after epoch {epoch}; try a lower --learning-rate"
            )
        yield {"epoch": epoch, **metrics}


def evaluate(model: nn.Module, task: Task) -> dict[str, float | None]:
    """Loss and accuracies of `model` as it stands, in eval mode.

    `loss` (mean cross-entropy in nats) and `given_accuracy` are against the given labels of the
    training images, `true_accuracy` against their true labels; `mislabelled_accuracy`, the
    memorization, is that on given labels over the mislabelled images alone (None if there are
    none); `test_accuracy` is against the true labels of the test images.
    """
    device = task.images.device
    with evaluating(model):
        logits = predict(lambda i: model(task.normalize(task.images[i])), len(task.given), device)
        tested = predict(
            lambda i: model(task.normalize(task.test_images[i])), len(task.test_labels), device
        )
    wrong = task.given != task.true
    return {
        "loss": functional.cross_entropy(logits.double(), task.given).item(),
        "given_accuracy": accuracy(logits, task.given),
        "true_accuracy": accuracy(logits, task.true),
        "mislabelled_accuracy": accuracy(logits[wrong], task.given[wrong]),
        "test_accuracy": accuracy(tested, task.test_labels),
    }
