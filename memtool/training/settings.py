"""Hyperparameters; without torch, so that the command line can offer them and still start fast."""

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from memtool.device import Precision


class Schedule(StrEnum):
    """The learning rate after the warm-up, in which it rises linearly to its peak."""

    linear = "linear"  # falls linearly, to 0 at the end of the run
    cosine = "cosine"  # falls along half a cosine, to 0 at the end of the run
    step = "step"  # falls to a tenth after half of these steps, to a hundredth after three quarters
    constant = "constant"  # stays at its peak


class Optimizer(StrEnum):
    """Which of PyTorch's optimizers updates the parameters."""

    adamw = "adamw"
    adam = "adam"
    sgd = "sgd"  # with Nesterov momentum of 0.9

    @property
    def state(self) -> set[str]:
        """What it keeps for each parameter, by PyTorch's names: a `step`, and tensors like it."""
        adams = {"step", "exp_avg", "exp_avg_sq"}
        return {"momentum_buffer"} if self is Optimizer.sgd else adams


class Augment(StrEnum):
    """How training images are varied in each epoch."""

    none = "none"
    crop_flip = "crop-flip"  # shifted by up to an eighth of their sides, and half of them mirrored


@dataclass(frozen=True)
class TrainConfig:
    """The hyperparameters of a training run: all that its numbers depend on besides model and data.

    `learning_rate` is the peak of the schedule. `warmup` is the fraction of all steps, in [0, 1],
    over which the rate rises. `weight_decay` is decoupled for AdamW and an L2 penalty for the other
    optimizers; the weights and biases of normalization layers are decayed only with `decay_norm`.
    `clip_norm` is the largest norm of the gradient, None for any. `sync_batch_norm`: batch norm
    takes the statistics of whole batches also where several processes share them. `compile`:
    torch.compile makes the kernels. `evaluate_every` counts the epochs from one evaluation to the
    next. `seed` determines the initial weights, and the order of the examples and their
    augmentation too, unless these have an `order_seed` of their own.
    """

    epochs: int = 20
    batch_size: int = 64
    optimizer: Optimizer = Optimizer.adamw
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    schedule: Schedule = Schedule.linear
    warmup: float = 0.1
    seed: int = 0
    augment: Augment = Augment.none
    clip_norm: float | None = None
    decay_norm: bool = False
    sync_batch_norm: bool = False
    precision: Precision = Precision.float32
    compile: bool = False
    evaluate_every: int = 1
    order_seed: int | None = None

    def recorded(self) -> dict[str, Any]:
        """The hyperparameters by name, as files have them: `order_seed` only if there is one."""
        content = asdict(self)
        if self.order_seed is None:
            del content["order_seed"]
        return content

    def epoch_seed(self, epoch: int) -> int:
        """The seed of all that is random in an epoch."""
        return ((self.seed if self.order_seed is None else self.order_seed) << 20) + epoch

    def steps_per_epoch(self, examples: int) -> int:
        """The number of batches that `examples` examples, at least one, are divided into."""
        return max(1, -(-(examples - 1) // self.batch_size))

    def batch_sizes(self, examples: int) -> list[int]:
        """The number of examples in each batch of an epoch.

        The last batch takes what is left over. A single example that is left over joins the batch
        before it, since batch norm needs two examples where there is one value per channel.

        >>> TrainConfig(batch_size=4).batch_sizes(10)
        [4, 4, 2]
        >>> TrainConfig(batch_size=4).batch_sizes(9)
        [4, 5]
        """
        full = self.steps_per_epoch(examples) - 1
        return [self.batch_size] * full + [examples - full * self.batch_size]

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at `step`, counted from 0, of a run of `steps` steps.

        >>> config = TrainConfig(learning_rate=1.0, warmup=0.5)
        >>> [config.rate(step, 8) for step in range(8)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
        """
        rising = self.warmup * steps
        if step + 1 < rising:
            return self.learning_rate * (step + 1) / rising
        left = min(1.0, (steps - step) / max(1.0, steps - rising))  # of what follows the warm-up
        match self.schedule:
            case Schedule.linear:
                return self.learning_rate * left
            case Schedule.cosine:
                return self.learning_rate * (1 - math.cos(math.pi * left)) / 2
            case Schedule.step:
                return self.learning_rate * 0.1 ** ((left <= 1 / 2) + (left <= 1 / 4))
            case Schedule.constant:
                return self.learning_rate

    def evaluates(self, epoch: int) -> bool:
        """Whether the network is evaluated after this epoch: the last one always is."""
        return epoch % self.evaluate_every == 0 or epoch == self.epochs
