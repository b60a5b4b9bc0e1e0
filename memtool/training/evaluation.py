"""What a classifier has learned: its loss and accuracy on given and true labels, on the mislabelled
part, on the rest, and on the test split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from memtool import MemtoolError
from memtool.data import HostImages
from memtool.device import Precision, Processes, precision
from memtool.layers import evaluating
from memtool.models import described, logits_of


@dataclass(frozen=True)
class Task:
    """What a classifier is trained and tested on, all on one device.

    Images are uint8 (n, c, h, w), or give batches of such; labels are int64 (n,) of so many
    `classes`. `normalize` turns a batch of images into the floating-point input of the classifier,
    which gets it in `memory_format`, None for that of the images. `batch_size` is that of
    evaluation, on which no number depends but for rounding.
    """

    images: Tensor | HostImages
    given: Tensor
    true: Tensor
    test_images: Tensor | HostImages
    test_labels: Tensor
    classes: int
    normalize: Callable[[Tensor], Tensor]
    batch_size: int
    memory_format: torch.memory_format | None = None

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """The logits of a batch of images, (b, classes). Raises MemtoolError if there are none."""
        inputs = self.normalize(images)
        if self.memory_format:
            inputs = inputs.contiguous(memory_format=self.memory_format)
        result = model(inputs)
        logits = logits_of(result, self.classes)
        if logits is None:
            raise MemtoolError(f"the model returned {described(result)}, not logits")
        return logits


class Metrics(TypedDict):
    """What a classifier has learned; see the columns of the same names in `TrainingRow`."""

    loss: float
    given_accuracy: float
    true_loss: float
    true_accuracy: float
    mislabelled_loss: float | None
    mislabelled_accuracy: float | None
    mislabelled_true_loss: float | None
    mislabelled_true_accuracy: float | None
    clean_loss: float | None
    clean_accuracy: float | None
    test_loss: float
    test_accuracy: float


class EpochMetrics(Metrics):
    """What a classifier has learned after `epoch` epochs."""

    epoch: int


@dataclass(frozen=True)
class Outcomes:
    """For n examples on the CPU, the cross-entropy of the logits with their labels in nats, float64
    (n,), and whether the largest logit is at the label, bool (n,)."""

    losses: Tensor
    hits: Tensor

    def loss(self) -> float:
        return self.losses.mean().item()

    def accuracy(self) -> float:
        """In [0, 1]."""
        return self.hits.double().mean().item()

    def of(self, which: Tensor) -> tuple[float | None, float | None]:
        """Loss and accuracy of the examples that `which`, bool (n,), says; None if there are
        none."""
        if not which.any():
            return None, None
        part = Outcomes(self.losses[which], self.hits[which])
        return part.loss(), part.accuracy()


@torch.no_grad()
def outcomes(
    logits: Callable[[Tensor], Tensor],
    labels: Sequence[Tensor],
    batch_size: int,
    processes: Processes = Processes(),
) -> list[Outcomes]:
    """The outcomes of one forward pass with each of several `labels`, int64 (n,) each.

    `logits` takes the indices of a batch, int64 (b,), and returns its logits, (b, classes). Several
    processes share the batches, and all of them get all outcomes.
    """
    device, examples = labels[0].device, len(labels[0])
    # MPS knows no float64.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    losses = torch.zeros(len(labels), examples, dtype=dtype, device=device)
    predicted = torch.zeros(examples, dtype=torch.int64, device=device)
    for batch in processes.share(torch.arange(examples, device=device).split(batch_size)):
        given = logits(batch).to(dtype)
        predicted[batch] = given.argmax(1)
        for row, of in zip(losses, labels, strict=True):
            row[batch] = functional.cross_entropy(given, of[batch], reduction="none")
    processes.sum(losses)
    processes.sum(predicted)
    return [
        Outcomes(row, (predicted == of).cpu())
        for row, of in zip(losses.cpu().double(), labels, strict=True)
    ]


def evaluate(
    model: nn.Module,
    task: Task,
    precise: Precision = Precision.float32,
    processes: Processes = Processes(),
) -> Metrics:
    """The metrics of `model` as it stands, in eval mode, of forward passes in that precision.

    Losses are mean cross-entropies in nats. `loss` and `given_accuracy` are measured against the
    given labels of the training images, `true_...` against their true labels; `mislabelled_...`
    against the given labels of the mislabelled images alone (the accuracy is the memorization),
    `mislabelled_true_...` against their true labels; `clean_...` are those of the other training
    images. What has no images is None. `test_...` are measured against the true labels of the test
    images.
    """

    def measured(images: Tensor | HostImages, labels: Sequence[Tensor]) -> list[Outcomes]:
        def logits(batch: Tensor) -> Tensor:
            return task.logits(model, images[batch]).float()

        return outcomes(logits, labels, task.batch_size, processes)

    with evaluating(model), precision(precise, task.given.device):
        given, true = measured(task.images, [task.given, task.true])
        (test,) = measured(task.test_images, [task.test_labels])
    wrong = (task.given != task.true).cpu()
    mislabelled, mislabelled_true, clean = given.of(wrong), true.of(wrong), given.of(~wrong)
    return {
        "loss": given.loss(),
        "given_accuracy": given.accuracy(),
        "true_loss": true.loss(),
        "true_accuracy": true.accuracy(),
        "mislabelled_loss": mislabelled[0],
        "mislabelled_accuracy": mislabelled[1],
        "mislabelled_true_loss": mislabelled_true[0],
        "mislabelled_true_accuracy": mislabelled_true[1],
        "clean_loss": clean[0],
        "clean_accuracy": clean[1],
        "test_loss": test.loss(),
        "test_accuracy": test.accuracy(),
    }
