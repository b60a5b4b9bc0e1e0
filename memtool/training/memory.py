"""What training takes in memory: said before the work if it does not fit; evaluation takes no more
than a training step."""

from math import ceil

import torch
from torch import Tensor, nn

from memtool import MemtoolError
from memtool.device import Precision, Processes, memory_of
from memtool.errors import counted, told_size
from memtool.layers import footprint
from memtool.training.settings import TrainConfig

# Below this, a larger batch is faster and nobody misses the memory.
LEAST = 64 * 2**20


def evaluation_batch(
    model: nn.Module,
    example: Tensor,
    config: TrainConfig,
    processes: Processes = Processes(),
) -> int:
    """The batch with which evaluating `model`, on its device, takes no more than training it.

    `example` is a normalized image, (1, c, h, w), or a vector, (1, features). Raises MemtoolError
    if a training step takes more memory than the device has; the images should be there already.
    """
    shape, device = tuple(example.shape[1:]), next(model.parameters()).device
    batch = ceil(config.batch_size / processes.size)
    step = footprint(model.train(), shape, gradients=True, example=example)
    check_step(step.of(batch) + _optimizer_state(model, config), batch, config, device)
    forward = footprint(model, shape, example=example)
    return forward.batch_within(max(step.per_example * batch, LEAST, forward.of(1)))


def _optimizer_state(model: nn.Module, config: TrainConfig) -> int:
    """The bytes that the optimizer keeps beside the weights."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return weights * len(config.optimizer.state - {"step"})


def check_step(
    needed: int, batch: int, config: TrainConfig, device: torch.device, images: int = 0
) -> None:
    """Raise MemtoolError if a training step with `batch` images, which takes so many bytes in
    float32, takes more than the device has left once `images` bytes of all images are there."""
    if config.precision is Precision.bf16:  # half of what was measured, at best
        needed //= 2
    if needed > (available := memory_of(device) - images):
        raise MemtoolError(
            f"a training step with {counted(batch, 'image')} takes {told_size(needed)} of memory, "
            f"{device} has {told_size(available, up=False)}; choose a smaller --batch-size or "
            "smaller images"
        )
