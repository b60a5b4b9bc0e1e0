"""Whether the rows of a layer's activations come in the order of the images.

They do not where a model sorts the images before it calls a module: by their length, or by the
expert that is to see them, say. Such rows cannot be set beside those of another layer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from memtool.layers.hooks import observed

FEATURES = 1024  # of a row, at most: enough to tell images apart
# Of the largest feature: what rounding may change, the kernels being the same, and what it may not.
ROUNDING, CLEARLY = 1e-5, 1e-3


@torch.no_grad()
def out_of_order(
    model: nn.Module, run: Callable[[Tensor], Any], axes: Mapping[str, int], images: Tensor
) -> set[str]:
    """The layers in whose activations an image has another row than its own, of those in `axes`,
    which says which axis of each counts the images.

    `run`, a forward pass of `model`, takes all `images` but for the last in their order, and all
    but for the first in the reverse one; four are needed, more tell more. Of what then differs,
    that is out of order which is found in another row; the rest depends on the other images.
    """
    with torch.autocast(images.device.type, enabled=False):  # images are told apart by their digits
        ahead, back = (_rows(model, run, axes, part) for part in (images[:-1], images[1:].flip(0)))
    return {name for name in ahead.keys() & back.keys() if _moved(ahead[name], back[name])}


def _rows(
    model: nn.Module, run: Callable[[Tensor], Any], axes: Mapping[str, int], images: Tensor
) -> dict[str, Tensor]:
    """Some features of each layer, (n, p), unless it has other than n rows."""
    rows: dict[str, Tensor] = {}

    def keep(name: str, activation: Tensor) -> None:
        x = activation.movedim(axes[name], 0)
        if len(x) == len(images) and x.numel():
            x = x.reshape(len(x), -1)
            some = x[:, :: max(1, x.shape[1] // FEATURES)].cpu()
            # A type that has room for all others, and differences.
            rows[name] = some.to(torch.complex128, copy=True)

    with observed(model, axes, keep):
        run(images)
    return rows


def _moved(ahead: Tensor, back: Tensor) -> bool:
    """Whether a row (p,) of images 0 to n - 1 is that of another image among those of n to 1.

    >>> rows = torch.tensor([[1.0], [3.0], [2.0], [0.0]])
    >>> _moved(rows[:-1], rows[1:].flip(0)), _moved(rows[:-1].flip(0), rows[1:])
    (False, True)
    """
    if ahead.shape != back.shape:
        return False
    rows, others, scale = ahead[1:], back.flip(0), ahead.abs().max()
    gaps = (rows[:, None] - others).abs().amax(2)
    is_elsewhere = (gaps <= ROUNDING * scale).any(1) & (gaps.diagonal() > CLEARLY * scale)
    return bool(is_elsewhere.any())
