"""Whether the rows of a layer's activations are those of the images, each by itself.

They come in another order where a model sorts the images before it calls a module: by their length,
or by the expert that is to see them, say. Such rows cannot be set beside those of another layer.
And they may depend on the other images of the batch, although what the model returns does not.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from memtool.layers.hooks import observed
from memtool.layers.layer import computed_scale, first_tensor

FEATURES = 1024  # of a row, at most: enough to tell images apart
# Of the largest feature: what rounding may change, the kernels being the same, and what it may not.
ROUNDING, CLEARLY = 1e-5, 1e-3
# How far from another image's row one is at most, of how far it is from its own, and of how far it
# would be from some other by chance: on a line, some are always near.
NEARLY, HARDLY = 0.1, 0.5
# Shuffles images so that no rotation, reversal or interleaving of them, or of chunks of them, goes
# unseen: tried with 3 to 65 images, of which only a reversal of three passes for a mixture.
SEED = 92


class Misplaced(NamedTuple):
    """Layers whose rows are not those of the images: in `another_order`, `mixed` with those of
    other images, or not as many (`uneven`)."""

    another_order: set[str]
    mixed: set[str]
    uneven: set[str]


@torch.no_grad()
def misplaced(
    model: nn.Module, run: Callable[[Tensor], Any], axes: Mapping[str, int], images: Tensor
) -> Misplaced:
    """The layers in whose activations an image has another row than its own, of those in `axes`,
    which says which axis of each counts the images.

    `run`, a forward pass of `model`, takes all `images` but for the last in their order, and all
    but for the first shuffled: a model may have moved those that come in an order of their own,
    such as the reverse one, alike. Four images are needed, more tell more. Of what then differs,
    that is in another order which is found in another row, the rest is mixed; but nothing is where
    the result of the model itself is.
    """
    n = len(images) - 1
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SEED))
    with torch.autocast(images.device.type, enabled=False):  # images are told apart by their digits
        ahead, result = _rows(model, run, axes, images[:-1], torch.arange(n))
        behind, other_result = _rows(model, run, axes, images[1:], order)
    names = ahead.keys() & behind.keys()
    uneven = axes.keys() - names
    another_order = {name for name in names if _moved(ahead[name], behind[name])}
    if result is None or other_result is None or _differing(result, other_result).any():
        return Misplaced(another_order, set(), uneven)
    differing = {name for name in names if _differing(ahead[name], behind[name]).any()}
    return Misplaced(another_order, differing - another_order, uneven)


def evenly_spaced(n: int, most: int) -> list[int]:
    """The places of at most so many of n images.

    >>> evenly_spaced(3, 512), evenly_spaced(2048, 512)[:3]
    ([0, 1, 2], [0, 4, 8])
    """
    size = min(n, most)
    return [n * i // size for i in range(size)]


def _rows(
    model: nn.Module,
    run: Callable[[Tensor], Any],
    axes: Mapping[str, int],
    images: Tensor,
    order: Tensor,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Some features of each layer, and of the result, (n, p), unless it has other than n rows; in
    the order of the `images`, though `run` takes them in the `order` that counts their places."""
    rows: dict[str, Tensor] = {}
    places = order.argsort()

    def keep(name: str, activation: Tensor) -> None:
        if (found := _some(activation.movedim(axes[name], 0), len(images))) is not None:
            rows[name] = found[places]

    with observed(model, axes, keep):
        result = first_tensor(run(images[order]))
    found = None if result is None else _some(result, len(images))
    return rows, None if found is None else found[places]


def _some(x: Tensor, n: int) -> Tensor | None:
    """Some features of n rows, (n, p), 0 for what is not finite; None of another number of rows, or
    of none."""
    if not x.ndim or len(x) != n:
        return None
    x = x.reshape(n, -1) if x.numel() else x.new_zeros(n, 1)
    some = x[:, :: max(1, x.shape[1] // FEATURES)].cpu()
    # A type that has room for all others, and differences.
    some = some.to(torch.complex128 if some.is_complex() else torch.float64, copy=True)
    return some.masked_fill_(~some.isfinite(), 0)


def _differing(ahead: Tensor, behind: Tensor) -> Tensor:
    """Which rows (p,) of images 1 to n - 1, (n - 1,) bool, differ between those of images 0 to
    n - 1 and those of 1 to n; none where the shapes do."""
    if ahead.shape != behind.shape:
        return torch.zeros(len(ahead) - 1, dtype=torch.bool)
    return _distances(ahead[1:], behind[:-1], _scale(ahead, behind)) > CLEARLY


def _moved(ahead: Tensor, behind: Tensor) -> bool:
    """Whether at least half of the rows (p,) of images 0 to n - 1 that differ are those of other
    images among those of 1 to n, or nearly so, which depend on the other images a little.

    >>> rows = torch.tensor([[1.0], [3.0], [2.0], [0.0]])
    >>> _moved(rows[:-1], rows[1:]), _moved(rows[:-1], rows[1:].roll(1, 0))
    (False, True)
    """
    differing = _differing(ahead, behind)
    rows, own = ahead[1:][differing], behind[:-1][differing]
    if not len(rows):
        return False
    scale = _scale(ahead, behind)
    nearest = torch.stack([_distances(row, behind, scale).min() for row in rows])
    by_chance = torch.stack([_distances(row, ahead, scale).kthvalue(2).values for row in rows])
    most = torch.minimum(NEARLY * _distances(rows, own, scale), HARDLY * by_chance)
    return bool((nearest <= most.clamp(min=ROUNDING)).double().mean() >= 0.5)


def _scale(ahead: Tensor, behind: Tensor) -> float:
    return max(computed_scale(ahead), computed_scale(behind))


def _distances(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """The largest difference between corresponding rows (p,), in parts of the features of `x`, or
    of the `scale` where they are smaller; NaN if all is 0."""
    return ((x - y).abs() / x.abs().clamp(min=scale)).amax(-1)
