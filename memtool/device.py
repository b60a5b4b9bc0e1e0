"""Which device to compute on, and the processes that share the work under torchrun."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

from memtool import MemtoolError

T = TypeVar("T")


def choose(name: str = "auto") -> torch.device:
    """`auto` is CUDA, else Apple's MPS, else the CPU; raises MemtoolError if `name` is not here.

    Under torchrun, `auto` and `cuda` are the CUDA device of the process's local rank.
    """
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


@dataclass(frozen=True)
class Processes:
    """The processes of a torchrun; a single one everywhere else. Only rank 0 speaks or writes."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of `items`; the parts of all processes make up the whole."""
        return items[self.rank :: self.size]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` summed over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the other processes of a torchrun, if there are any, until the block ends."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()
