"""One network trained by the processes of a torchrun: each takes its part of every batch, and
DistributedDataParallel averages their gradients."""

from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from memtool import MemtoolError
from memtool.device import Processes
from memtool.layers import evaluating
from memtool.models import logits_of
from memtool.training.evaluation import Task
from memtool.training.settings import TrainConfig


def check_shares(config: TrainConfig, examples: int, processes: Processes) -> None:
    """Raise MemtoolError unless each process gets two examples of every batch: one is not enough
    for batch norm."""
    smallest = min(config.batch_sizes(examples)[-2:])
    if processes.size > 1 and smallest < 2 * processes.size:
        raise MemtoolError(
            f"a batch of {smallest} of the {examples} training images is too small for "
            f"{processes.size} processes; choose another --batch-size, or fewer processes"
        )


def shared(model: nn.Module, task: Task, processes: Processes) -> nn.Module:
    """What the forward pass of each process runs; of one process it is `model` itself.

    Batch norm takes the statistics of each process's part, and the running statistics of rank 0
    count, unless the model was made by `synchronized`. Raises MemtoolError for a buffer that rank 0
    cannot give to the others.
    """
    if processes.size == 1:
        return model
    _check_buffers(model)
    device = task.given.device
    return DistributedDataParallel(
        _Logits(model, task.classes),
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=_has_unused_parameters(model, task),
    )


def _check_buffers(model: nn.Module) -> None:
    """Raise MemtoolError for a buffer with several elements in one place, where none is written."""
    for name, buffer in model.named_buffers():
        axes = zip(buffer.shape, buffer.stride(), strict=True)
        if any(size > 1 and not step for size, step in axes):
            raise MemtoolError(
                f"the model's buffer {name!r} has several elements in one place, as expand() makes "
                "them, and cannot be received by other processes; register buffer.contiguous(), or "
                "train in one process"
            )


class _Logits(nn.Module):
    """The model without what else it returns: whatever DistributedDataParallel is given back, it
    expects a gradient of."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, inputs: Tensor) -> Any:
        result = self.model(inputs)
        logits = logits_of(result, self.classes)
        return result if logits is None else logits


def _has_unused_parameters(model: nn.Module, task: Task) -> bool:
    """Whether the logits do not depend on some parameters, such as those of an auxiliary head."""
    with evaluating(model):
        task.logits(model, task.images[:2]).sum().backward()
    unused = any(p.requires_grad and p.grad is None for p in model.parameters())
    model.zero_grad(set_to_none=True)
    return unused


def agree(model: nn.Module, processes: Processes) -> None:
    """Give every process the buffers of rank 0, such as running statistics."""
    if processes.size > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def synchronized(model: nn.Module) -> nn.Module:
    """The model with batch norms that take the statistics of the parts of all processes together;
    its parameters and their names stay the same."""
    norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    made: dict[nn.Module, nn.Module] = {norm: SynchronizedBatchNorm(norm) for norm in norms}
    for module in list(model.modules()):
        for name, child in module._modules.items():  # under all names of a child
            if isinstance(child, _BatchNorm):
                setattr(module, name, made[child])
    return made[model] if isinstance(model, _BatchNorm) else model


class _Sum(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(tensor: Tensor) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


class SynchronizedBatchNorm(_BatchNorm):
    """Batch norm over the parts of a batch that all processes have.

    torch.nn.SyncBatchNorm does the same, on a GPU alone; this one is the same computation wherever
    it runs. Variances come from centered values, as they do in batch norm.
    """

    def __init__(self, batch_norm: _BatchNorm) -> None:
        super().__init__(batch_norm.num_features)
        self.__dict__.update(batch_norm.__dict__)  # parameters, buffers, eps, momentum

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions, as the batch norm that this stands for has checked."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        values = input.float()
        dims = [0, *range(2, values.ndim)]
        shape = [1, -1, *[1] * (values.ndim - 2)]
        count = values.new_full((1,), values.numel() / values.shape[1])  # no copy to wait for
        *sums, n = _Sum.apply(torch.cat([values.sum(dims), count])).tensor_split([-1])
        mean = sums[0] / n.detach()
        centered = values - mean.view(shape)
        variance = _Sum.apply(centered.square().sum(dims)) / n.detach()
        self._track(mean.detach(), variance.detach(), n.detach())
        result = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return cast(Tensor, result.to(input.dtype))

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, n: Tensor) -> None:
        """Update the running statistics, in which the variance is the unbiased one."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None  # they come together
        self.num_batches_tracked.add_(1)
        weight = 1 / self.num_batches_tracked.float()
        if self.momentum is not None:
            weight.fill_(self.momentum)
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance * n / (n - 1), weight)
