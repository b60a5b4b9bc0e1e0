"""The rbf kernel exp(-distance^2 / (2 sigma^2)), sigma a multiple of the median distance.

The median is that between the examples of a fixed sample, which depends neither on the size of
batches nor on their order: see `sample`.
"""

import torch
from torch import Tensor

from memtool.layers import evenly_spaced
from memtool.similarity.hsic import wide
from memtool.similarity.recorder import magnitude, mean_of, scale_of, scaled, type_of_mean

SAMPLE = 512  # examples whose distances set sigma


def sample(n: int) -> list[int]:
    """Which of n examples set sigma: all of them, or SAMPLE of them, evenly spaced.

    >>> sample(3), sample(2048)[:3]
    ([0, 1, 2], [0, 4, 8])
    """
    return evenly_spaced(n, SAMPLE)


def squared_distances(products: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Squared distances (n, m) from inner products (n, m) and squared norms (n,) and (m,)."""
    return (rows[:, None] + columns - 2 * products).clamp_min_(0)


def rbf(products: Tensor, rows: Tensor, columns: Tensor, sigma: Tensor) -> Tensor:
    """Values of the kernel (n, m), from what `squared_distances` takes; NaN if sigma is 0."""
    return torch.exp(squared_distances(products, rows, columns) / (-2 * sigma**2))


def median_distance(x: Tensor) -> Tensor:
    """The median of the distances between two different ones of the examples x (n, p), n > 1, a
    float64 of dimension 0."""
    n = len(x)
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(type_of_mean(x)) - mean_of(x)
        x = scaled(x, scale := scale_of(magnitude([x])))
        norms = torch.linalg.vector_norm(x, dim=1).square()
        squared = squared_distances(x @ x.T, norms, norms)
    apart = squared.flatten()[1:].view(n - 1, n + 1)[:, :-1]  # all but the diagonal
    return wide(apart.flatten().median().sqrt()) / scale
