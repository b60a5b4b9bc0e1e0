"""Which device to compute on."""

import torch

from memtool import MemtoolError


def choose(name: str = "auto") -> torch.device:
    """`auto` is CUDA, else Apple's MPS, else the CPU; raises MemtoolError if `name` is not here."""
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        return torch.device(available[0])
    if name.partition(":")[0] not in available:
        raise MemtoolError(f"device {name!r} is not available (available: {', '.join(available)})")
    return torch.device(name)
