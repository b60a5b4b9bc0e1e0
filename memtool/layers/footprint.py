"""What a pass of a model takes in memory: measured, not guessed, and at next to no cost."""

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from memtool import MemtoolError
from memtool.errors import told_size
from memtool.layers.dataflow import tensors
from memtool.layers.hooks import evaluating
from memtool.layers.layer import tensors_in

# What a process takes for the examples, as a multiple of the tensors that live at once, since
# convolutions copy their input and output into another layout, and freed memory is not whole again
# at once. Measured on a CPU as the growth of the resident memory, in float32: resnet18 at 224
# pixels 1.11 (16 images) and 0.99 (64), channels last 1.48 and 1.12, in training 1.17 and 1.05;
# vgg11 1.15; a small ViT 1.29, in training 0.92.
WORKSPACE = 1.5
# Up to these, running a model costs less than importing what the meta device needs.
SMALL_IMAGE = 64 * 64  # pixels
SMALL_MODEL = 2**25  # weights
SMALL_WORK = 2**38  # weights times pixels of all examples: more than the multiplications of a pass


def is_small(weights: int, shape: tuple[int, ...], examples: int = 4) -> bool:
    """Whether a pass of a model with so many weights, for so many examples of `shape`, (c, h, w) or
    (features,), takes less time than one on the meta device."""
    pixels = prod(shape[1:])
    work = weights * pixels * examples
    return pixels <= SMALL_IMAGE and weights <= SMALL_MODEL and work <= SMALL_WORK


@dataclass(frozen=True)
class Footprint:
    """The bytes that a pass takes at its peak, above the weights: `fixed`, and `per_example` for
    each example of the batch."""

    fixed: int
    per_example: int

    def of(self, batch: int) -> int:
        """The bytes of a pass with so many examples."""
        return self.fixed + self.per_example * batch

    def batch_within(self, memory: int, what: str = "a forward pass") -> int:
        """The largest batch whose pass takes no more than `memory` bytes. Raises MemtoolError,
        which calls the pass `what`, if not even one example fits.

        >>> Footprint(fixed=100, per_example=30).batch_within(200)
        3
        """
        if memory < self.of(1):
            raise MemtoolError(
                f"{what} takes {told_size(self.of(1))} for a single example, but may take "
                f"{told_size(memory, up=False)}; allow for more (--memory), or take smaller images "
                "(--image-size)"
            )
        return (memory - self.fixed) // max(self.per_example, 1)


def footprint(
    model: nn.Module,
    shape: tuple[int, ...],
    gradients: bool = False,
    example: Tensor | None = None,
) -> Footprint:
    """What a pass of `model` takes for examples of `shape`, (c, h, w) or (features,), in float32.

    The model runs in eval mode without gradients; or, with `gradients`, in the mode that it is in,
    forwards and backwards, and what it keeps for the way back and the gradients of all that needs
    one count. (If no weight does, the input does.) What an optimizer keeps does not count. Autocast
    to half precision takes less.

    The tensors that live at once are counted with two examples and with four, since a model may
    take pairs: on the meta device, where nothing is computed, unless the model has weights and is
    small, or does not run there. All are the `example`, (1, *shape), as the model takes it, or else
    noise: a model may choose what it does by their values. What kernels take beside is WORKSPACE.
    The model, its buffers and PyTorch's generators stay as they are.
    """
    weights = list(model.parameters())
    is_real = not any(weight.is_meta for weight in weights)
    runs = is_real and is_small(sum(weight.numel() for weight in weights), shape)
    with evaluating(model) if not gradients else nullcontext():
        if runs:
            with suppress(Exception):  # whatever a model raises that is not to be copied
                return _measured(copy.deepcopy(model), _given(shape, example), gradients)
        with suppress(Exception):  # or that needs tensors with values
            empty = torch.zeros(1, *shape, device="meta")
            return _measured(_on_meta(model), empty, gradients)
        with suppress(Exception):  # or that takes no noise
            return _measured(model, _given(shape, example), gradients)
        return _measured(model, torch.zeros(1, *shape), gradients)


def _given(shape: tuple[int, ...], example: Tensor | None) -> Tensor:
    """An example, (1, *shape): noise unless there is one. Of zeros, some models make nothing."""
    if example is None:
        return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    return example


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy of the model whose tensors have no values; none is copied on the way."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = parameter.detach().to("meta")
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    memo |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


def _measured(model: nn.Module, example: Tensor, gradients: bool) -> Footprint:
    with unchanged(model), _unfused_attention():
        two, four = (_history(model, example, batch, gradients) for batch in (2, 4))
    if len(two) != len(four):  # operations for each example: the moments do not correspond
        two, four = [max(two)], [max(four)]
    # Each moment takes a fixed part and one for each example. The largest of both bound them all,
    # whichever moment is the peak of a large batch.
    fixed = max(2 * a - b for a, b in zip(two, four, strict=True))
    per_example = max(b - a for a, b in zip(two, four, strict=True)) / 2
    return Footprint(max(fixed, 0), ceil(WORKSPACE * per_example))


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Within the block, attention is made of operations whose tensors are seen. The fused ones of
    some devices take less, but not everywhere, and nobody tells how much."""
    is_fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fused)


def _history(model: nn.Module, example: Tensor, batch: int, gradients: bool) -> list[int]:
    """The bytes that live after each operation of a pass with the example so many times: of others,
    each might take another way through the model."""
    device = next((tensor.device for tensor in model.state_dict().values()), None)
    live = LiveBytes()
    with live, torch.set_grad_enabled(gradients):
        torch.default_generator.manual_seed(0)  # for a model that draws which way it goes
        examples = example.to(device).repeat(batch, *[1] * (example.ndim - 1))
        weights: list[Tensor] = [one for one in model.parameters() if one.requires_grad]
        if gradients and not weights:
            weights.append(examples.requires_grad_())
        result = [one for one in tensors_in(model(examples)) if one.requires_grad]
        if result:
            torch.stack([one.abs().sum() for one in result]).sum().backward()
        for weight in weights:
            weight.grad = None
    return live.history


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Afterwards, buffers and generators are as they were before the block, however it ends."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with torch.random.fork_rng(devices=_cuda(model)):
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                if buffer.shape == value.shape:
                    buffer.copy_(value)
                else:
                    buffer.data = value
                module._buffers[name] = buffer


def _cuda(model: nn.Module) -> list[torch.device]:
    devices = {weight.device for weight in model.parameters()}
    return [device for device in devices if device.type == "cuda"]


class LiveBytes(TorchDispatchMode):
    """Follows, within its block, the memory of tensors that operations make, until it is freed.

    `history` has the bytes that are there after each operation. Memory that was there before the
    block does not count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.history = [0]
        self._bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for tensor in tensors((args, kwargs)):
            self._follow(tensor, is_new=False)
        result = func(*args, **(kwargs or {}))
        for tensor in tensors(result):
            self._follow(tensor, is_new=True)
        self.history.append(self._bytes)
        return result

    def _follow(self, tensor: Tensor, is_new: bool) -> None:
        try:
            storage = tensor.untyped_storage()
        except (RuntimeError, NotImplementedError):  # sparse and nested tensors have several
            return
        key = storage._cdata
        if key not in self._known:
            size = storage.nbytes() if is_new else 0
            self._known.add(key)
            self._bytes += size
            weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._bytes -= size
