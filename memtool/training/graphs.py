"""Training steps on a GPU as CUDA graphs: hundreds of kernels that are launched at once.

The steps of small networks take longer to launch than to compute; those of ResNet-18 on CIFAR-10
become a tenth faster.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger("memtool")

# Steps that run as they are before one is recorded: the optimizer makes its state in the first, and
# libraries choose their kernels.
WARMUP = 3


class GraphedStep:
    """A training step, recorded once and then replayed for every batch of that size; others run as
    they are.

    `step` takes the indices of a batch, int64 (size,), and must read everything else from tensors
    that stay where they are. A step that cannot be recorded, such as that of a model that looks at
    values, is not: all of them then run as they are.
    """

    def __init__(self, step: Callable[[Tensor], None], size: int, device: torch.device) -> None:
        self._step, self._before, self._graph = step, WARMUP, torch.cuda.CUDAGraph()
        self._indices = torch.zeros(size, dtype=torch.int64, device=device)
        self._is_recorded, self._can_record = False, True

    def __call__(self, indices: Tensor) -> None:
        """Take the step with this batch."""
        if len(indices) != len(self._indices) or self._before or not self._can_record:
            self._before = max(self._before - 1, 0)
            self._step(indices)
            return
        self._indices.copy_(indices)
        if not self._is_recorded:
            self._record()
        if self._is_recorded:
            self._graph.replay()
        else:
            self._step(indices)

    def _record(self) -> None:
        try:
            with torch.cuda.graph(self._graph):
                self._step(self._indices)
            self._is_recorded = True
        except RuntimeError as error:
            self._can_record = False
            logger.info(f"no CUDA graph of the training step ({str(error).splitlines()[0]})")
