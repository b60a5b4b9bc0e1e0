"""The rbf kernel exp(-distance^2 / (2 sigma^2)), sigma a multiple of the median distance.

The median is that between the examples of a fixed sample, which depends neither on the size of
batches nor on their order: see `sample`.
"""

import torch
from torch import Tensor

from memtool.layers import evenly_spaced
from memtool.similarity.hsic import wide
from memtool.similarity.recorder import (
    ROUNDING,
    magnitude,
    mean_of,
    scale_of,
    scaled,
    type_of_mean,
)

SAMPLE = 512  # examples whose distances set sigma
CHUNK = 2048  # features at a time in float64
# What rounding leaves of squared distances, in units of the precision of the squared norms; what
# part of the variance it may be; up to how many variances the kernel is more than 1e-9.
OF_PRODUCTS, PART, NEAR = 16, 1e-3, 40


def sample(n: int) -> list[int]:
    """Which of n examples set sigma: all of them, or SAMPLE of them, evenly spaced.

    >>> sample(3), sample(2048)[:3]
    ([0, 1, 2], [0, 4, 8])
    """
    return evenly_spaced(n, SAMPLE)


def rbf(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, sigma: Tensor) -> Tensor:
    """Values of the kernel (n, m) for features x (n, p) and y (m, p), relative to the same origin,
    whose squared norms are `rows` (n,) and `columns` (m,). There is no kernel if sigma is 0."""
    squared = _of_products(x @ y.T, rows, columns)
    if _loses_digits(squared, rows, columns, sigma**2):
        squared = _in_float64(x, y)
    return torch.exp(squared / (-2 * sigma**2))


def median_distance(x: Tensor) -> Tensor:
    """The median of the distances between two different ones of the examples x (n, p), n > 1, a
    float64 of dimension 0. Those that differ by no more than rounding have a distance of 0."""
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(type_of_mean(x)) - mean_of(x)
        x = scaled(x, scale := scale_of(magnitude([x])))
        norms = torch.linalg.vector_norm(x, dim=1).square()
        squared = _of_products(x @ x.T, norms, norms)
        if _loses_digits(squared, norms, norms, _between_different(squared).median()):
            squared = _in_float64(x, x)
        of_features, of_products = (torch.finfo(z.dtype).eps for z in (x, squared))
        rounding = max((ROUNDING * of_features) ** 2, OF_PRODUCTS * of_products)
        squared = squared.masked_fill(squared <= rounding * (norms[:, None] + norms), 0)
    return wide(_between_different(squared).median().sqrt()) / scale


def _in_float64(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances (n, m) between features x (n, p) and y (m, p)."""
    x_norms, y_norms = (wide(z.new_zeros(len(z))) for z in (x, y))
    products = wide(x.new_zeros(len(x), len(y)))
    for a, b in zip(x.split(CHUNK, dim=1), y.split(CHUNK, dim=1), strict=True):
        a, b = wide(a), wide(b)
        products.addmm_(a, b.T)
        x_norms += a.square().sum(1)
        y_norms += b.square().sum(1)
    return _of_products(products, x_norms, y_norms)


def _of_products(products: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Squared distances (n, m) from inner products (n, m) and squared norms (n,) and (m,)."""
    return (rows[:, None] + columns - 2 * products).clamp_min_(0)


def _loses_digits(squared: Tensor, rows: Tensor, columns: Tensor, variance: Tensor) -> bool:
    """Whether rounding of squared distances in float32 changes a value of a kernel of that variance
    by more than PART: those of near examples far from the origin are small differences of large
    inner products."""
    if squared.dtype == torch.float64:
        return False
    rounding = OF_PRODUCTS * torch.finfo(squared.dtype).eps * (rows[:, None] + columns)
    return bool(((rounding > PART * variance) & (squared <= NEAR * variance)).any())


def _between_different(squared: Tensor) -> Tensor:
    """A matrix (n, n) without its diagonal, (n (n - 1),)."""
    n = len(squared)
    return squared.flatten()[1:].view(n - 1, n + 1)[:, :-1].flatten()
