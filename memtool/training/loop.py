"""The training loop: `optimize`, for classifiers and stitching layers alike, and `fit`, which
applies it to a classifier and measures what the classifier has learned after each epoch.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from memtool import MemtoolError
from memtool.layers import evaluating
from memtool.models import described, logits_of
from memtool.training.settings import Optimizer, TrainConfig

EVALUATION_BATCH = 1024


def make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that `config` names, with a learning rate of 1.0 for `optimize` to schedule."""
    decay = config.weight_decay
    match config.optimizer:
        case Optimizer.adamw:
            return torch.optim.AdamW(parameters, lr=1.0, weight_decay=decay, fused=True)
        case Optimizer.adam:
            return torch.optim.Adam(parameters, lr=1.0, weight_decay=decay, fused=True)
        case Optimizer.sgd:
            return torch.optim.SGD(
                parameters, lr=1.0, momentum=0.9, nesterov=True, weight_decay=decay, fused=True
            )


def optimize(
    forward: Callable[[Tensor], Tensor],
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    done: int = 0,
) -> Iterator[int]:
    """Minimize the cross-entropy and yield the number of each epoch when it ends.

    `forward` takes the indices of a batch, int64 (b,), and returns its logits, (b, classes);
    `labels` is int64 (n,). `optimizer` comes from `make_optimizer`: the schedule multiplies its
    learning rate of 1.0 by `config.rate`.

    Epochs are counted from 1, and the first `done` of them are skipped. PyTorch's global generator
    is seeded from the seed and the number of each epoch, so that a run which was stopped and
    resumed continues as if it had not been stopped. Nothing within an epoch waits for the device.
    """
    per_epoch = config.steps_per_epoch(len(labels))
    first, steps = done * per_epoch, config.epochs * per_epoch
    schedule = LambdaLR(optimizer, lambda step: config.rate(first + step, steps))
    for epoch in range(done + 1, config.epochs + 1):
        torch.manual_seed((config.seed << 20) + epoch)  # dropout draws from the global generator
        order = torch.randperm(len(labels)).to(labels.device)
        for batch in order.split(config.batch_sizes(len(labels))):
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(forward(batch), labels[batch]).backward()
            optimizer.step()
            schedule.step()
        yield epoch


@torch.no_grad()
def predict(forward: Callable[[Tensor], Tensor], examples: int, device: torch.device) -> Tensor:
    """The logits of all examples in order, (examples, classes); `forward` as in `optimize`."""
    indices = torch.arange(examples, device=device)
    return torch.cat([forward(batch) for batch in indices.split(EVALUATION_BATCH)])


def accuracy(logits: Tensor, labels: Tensor) -> float | None:
    """The fraction of examples, in [0, 1], whose largest logit is at their label.

    None if there are no examples.

    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    0.5
    """
    return _fraction(logits.argmax(1) == labels) if len(labels) else None


def _fraction(hits: Tensor) -> float:
    """The fraction of true values, in [0, 1]; bool (n,) with n at least 1."""
    return hits.double().mean().item()


@dataclass(frozen=True)
class Task:
    """What a classifier is trained and tested on, all on one device.

    Images are uint8 (n, c, h, w), labels int64 (n,) of so many `classes`. `normalize` turns a batch
    of images into the floating-point input of the classifier.
    """

    images: Tensor
    given: Tensor
    true: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int
    normalize: Callable[[Tensor], Tensor]

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """The logits of a batch of images, (b, classes). Raises MemtoolError if there are none."""
        result = model(self.normalize(images))
        logits = logits_of(result, self.classes)
        if logits is None:
            raise MemtoolError(f"the model returned {described(result)}, not logits")
        return logits


class Metrics(TypedDict):
    """What a classifier has learned; see the columns of the same names in `TrainingRow`."""

    loss: float
    given_accuracy: float
    true_accuracy: float
    mislabelled_accuracy: float | None
    test_accuracy: float


class EpochMetrics(Metrics):
    """What a classifier has learned after `epoch` epochs."""

    epoch: int


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    config: TrainConfig,
    done: int = 0,
) -> Iterator[EpochMetrics]:
    """Train `model` on the given labels; yield the metrics after each epoch.

    `optimizer` and `done` are those of `optimize`. Raises MemtoolError if the loss is not finite.
    """

    def forward(batch: Tensor) -> Tensor:
        with torch.autocast(
            task.images.device.type, torch.bfloat16, enabled=task.images.device.type == "cuda"
        ):
            return task.logits(model, task.images[batch]).float()

    model.train()
    for epoch in optimize(forward, task.given, optimizer, config, done):
        metrics = evaluate(model, task)
        if not math.isfinite(metrics["loss"]):
            raise MemtoolError(
                f"the loss is {metrics['loss']} after epoch {epoch}; try a lower --learning-rate"
            )
        yield {"epoch": epoch, **metrics}


def evaluate(model: nn.Module, task: Task) -> Metrics:
    """The metrics of `model` as it stands, in eval mode.

    `loss` (mean cross-entropy in nats) and `given_accuracy` are measured against the given labels
    of the training images, `true_accuracy` against their true labels. `mislabelled_accuracy`, the
    memorization, is the accuracy on the given labels of the mislabelled images alone, None if there
    are none. `test_accuracy` is measured against the true labels of the test images.
    """
    device = task.images.device
    with evaluating(model):
        logits = predict(lambda i: task.logits(model, task.images[i]), len(task.given), device)
        test_logits = predict(
            lambda i: task.logits(model, task.test_images[i]), len(task.test_labels), device
        )
    predicted, wrong = logits.argmax(1), task.given != task.true
    return {
        "loss": functional.cross_entropy(logits.double(), task.given).item(),
        "given_accuracy": _fraction(predicted == task.given),
        "true_accuracy": _fraction(predicted == task.true),
        "mislabelled_accuracy": accuracy(logits[wrong], task.given[wrong]),
        "test_accuracy": _fraction(test_logits.argmax(1) == task.test_labels),
    }
