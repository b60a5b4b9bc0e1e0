"""Training steps on a GPU as CUDA graphs: hundreds of kernels that are launched at once.

The steps of small networks take longer to launch than to compute; those of ResNet-18 on CIFAR-10
become a tenth faster.
"""

import logging
import pickle
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from memtool.device import memory_of
from memtool.errors import one_line

logger = logging.getLogger("memtool")

# Steps that run as they are before one is recorded: the optimizer makes its state in the first, and
# libraries choose their kernels.
WARMUP = 3


class GraphedStep:
    """A training step, recorded once and then replayed for every batch of that size; others run as
    they are.

    `step` takes the indices of a batch, int64 (size,), and must read everything else from tensors
    that stay where they are. A step that cannot be recorded, such as that of a model that looks at
    values, is not, nor one that draws from a generator of the host, as layers do that are left out
    at random: what it drew while it was recorded would hold for all. They then run as they are. So
    do all where memory is scarce: a graph keeps that of a step for itself.
    """

    def __init__(self, step: Callable[[Tensor], None], size: int, device: torch.device) -> None:
        self._step, self._before, self._graph = step, WARMUP, torch.cuda.CUDAGraph()
        self._indices = torch.zeros(size, dtype=torch.int64, device=device)
        self._is_recorded, self._can_record = False, True
        self._allocated = torch.cuda.memory_allocated(device)

    def __call__(self, indices: Tensor) -> None:
        """Take the step with this batch."""
        if not self._can_record:
            self._step(indices)
            return
        if len(indices) != len(self._indices) or self._before:
            self._before = max(self._before - 1, 0)
            before = _generators()
            self._step(indices)
            if _generators() != before:
                self._give_up("its model draws from a generator of the host")
            return
        self._indices.copy_(indices)
        if not self._is_recorded:
            self._record()
        if self._is_recorded:
            self._graph.replay()
        else:
            self._step(indices)

    def _has_room(self) -> bool:
        """Whether the device has room for the graph's step and, beside it, for those that run as
        they are, or an evaluation, which takes no more."""
        device = self._indices.device
        # That of the whole process, so that it may be more than the steps have taken, never less.
        step = torch.cuda.max_memory_allocated(device) - self._allocated
        return 2 * step <= memory_of(device)

    def _record(self) -> None:
        if not self._has_room():
            self._give_up("the device has no room for a second step")
            return
        device = self._indices.device
        stream = torch.cuda.current_stream(device)
        try:
            with torch.cuda.graph(self._graph, stream=torch.cuda.Stream(device)):
                self._step(self._indices)
            self._is_recorded = True
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # PyTorch does not, where the end of a recording fails
            self._graph.reset()  # gives back the memory of what was recorded
            self._give_up(one_line(error.__context__ or error))

    def _give_up(self, why: str) -> None:
        self._can_record = False
        logger.info(f"no CUDA graph of the training step ({why})")


def _generators() -> tuple[object, ...]:
    """The states of the generators that a model may draw from on the host."""
    numpy = pickle.dumps(np.random.get_state())
    return random.getstate(), numpy, torch.get_rng_state().numpy().tobytes()
