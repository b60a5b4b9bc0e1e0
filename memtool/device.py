"""Which device to compute on, and the processes that share the work under torchrun."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from memtool import MemtoolError

if TYPE_CHECKING:  # the command line offers Precision, and torch is slow to import
    import torch

T = TypeVar("T")


class Precision(StrEnum):
    """What networks compute in."""

    float32 = "float32"
    tf32 = "tf32"  # on CUDA, products of 10-bit mantissas; elsewhere the same as float32
    bf16 = "bf16"  # torch's autocast; Gram matrices stay float32


def choose(name: str = "auto") -> "torch.device":
    """`auto` is CUDA, else Apple's MPS, else the CPU; raises MemtoolError if `name` is not here.

    Under torchrun, `auto` and `cuda` are the CUDA device of the process's local rank.
    """
    import torch

    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        name = available[0]
    kind, colon, index = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if kind not in available or colon and not (index.isdecimal() and int(index) < count):
        raise MemtoolError(f"device {name!r} is not available (available: {', '.join(available)})")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    return torch.device(name)


@contextmanager
def precision(name: Precision, device: "torch.device") -> Iterator[None]:
    """Compute in `name` until the block ends; torch lets convolutions on CUDA be TF32 unless it is
    told otherwise."""
    import torch

    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = name is Precision.tf32
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=name is Precision.bf16):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


@dataclass(frozen=True)
class Processes:
    """The processes of a torchrun; a single one everywhere else. Only rank 0 speaks or writes."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of `items`; the parts of all processes make up the whole."""
        return items[self.rank :: self.size]

    def sum(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """`tensor` summed over all processes, in place."""
        if self.size > 1:
            from torch import distributed

            distributed.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank, in every process."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values


@contextmanager
def processes(device: "torch.device") -> Iterator[Processes]:
    """Join the other processes of a torchrun, if there are any, until the block ends."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes()
        return
    import torch
    from torch import distributed

    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()
