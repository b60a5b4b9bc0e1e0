"""CKA from HSIC."""

import math

import torch
from torch import Tensor


def normalized(xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    """CKA from HSIC(X, Y), HSIC(X, X) and HSIC(Y, Y); NaN unless the last two are positive.

    In [0, 1] for `exact`. The other estimators are unbiased in each HSIC, so that of unrelated
    layers scatters around 0, and they cannot tell a self-similarity too small for them from none.
    """
    return torch.where((xx > 0) & (yy > 0), xy / (xx.sqrt() * yy.sqrt()), math.nan)
