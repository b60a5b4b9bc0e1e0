"""Centered Kernel Alignment. Tensors in, tensors out: no files, no models.

Letters as in the paper (Gupta, Saha, Rai 2024, after Kornblith et al. 2019): X (n, p) and Y (n, q)
are the features of the same n examples at two layers, K = X X^T and L = Y Y^T their Gram matrices,
H = I - 1 1^T / n the centring matrix;

    HSIC(K, L) = trace(K H L H) / (n - 1)^2        CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from memtool import MemtoolError


def features(activation: Tensor) -> Tensor:
    """Activations (n, ...) flattened to features (n, p), in float32 or better."""
    flat = activation.flatten(1) if activation.ndim > 1 else activation[:, None]
    return flat if flat.dtype == torch.float64 else flat.float()


def centered(x: Tensor) -> Tensor:
    """Features (n, p) minus their mean over the n examples.

    In two steps, so that an offset that all examples share does not eat the digits of their
    differences: the first example is taken off before the mean is formed.
    """
    x = x - x[:1]
    return x - x.mean(0)


def gram(x: Tensor) -> Tensor:
    """The centered Gram matrix H X X^T H, (n, n), of features or activations (n, ...)."""
    x = centered(features(x))
    return x @ x.T


def hsic(grams: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Biased HSIC of every pair of centered Gram matrices (n, n): (grams, others), float64.

    Raises MemtoolError for fewer than two examples.
    """
    n = len(grams[0])
    if n < 2:
        raise MemtoolError(f"CKA needs two examples or more, not {n}")
    result = torch.zeros(len(grams), len(others), dtype=torch.float64)
    # Row by row of all matrices at once: one product per block, and float64 copies stay small.
    for rows in torch.arange(n).split(max(1, 2**20 // n)):
        left = torch.stack([gram[rows].double().flatten() for gram in grams])
        right = torch.stack([gram[rows].double().flatten() for gram in others])
        result += (left @ right.T).cpu()
    return result / (n - 1) ** 2


def normalized(xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    """CKA from HSIC(X, Y), HSIC(X, X) and HSIC(Y, Y); NaN where a layer's features are constant."""
    return xy / (xx * yy).sqrt()
