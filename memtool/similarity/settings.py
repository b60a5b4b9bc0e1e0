"""What the user chooses for a comparison. Apart from the rest, because torch is slow to import."""

from dataclasses import dataclass
from enum import StrEnum

from memtool.device import MEMORY, Precision


class Estimator(StrEnum):
    """How HSIC is estimated."""

    auto = "auto"  # exact where one pass of it fits into memory; see `planning.make_plan`
    exact = "exact"  # the biased estimator on all n examples at once, the paper's
    biased = "biased"  # another name for exact
    unbiased = "unbiased"  # the unbiased estimator on all n examples at once
    minibatch = "minibatch"  # the unbiased estimator, averaged over batches

    @property
    def canonical(self) -> "Estimator":
        """The estimator by its one name."""
        return Estimator.exact if self is Estimator.biased else self


class Kernel(StrEnum):
    """What Gram matrices are made of."""

    linear = "linear"  # inner products of features
    rbf = "rbf"  # exp(-distance^2 / (2 sigma^2)), sigma a multiple of the median distance


class Route(StrEnum):
    """By what HSIC of a pair of layers is computed."""

    gram = "gram"  # Gram matrices (n, n), whole or in tiles
    covariance = "covariance"  # covariances (p, q): see `feature_space`


class Pairs(StrEnum):
    """Which layers are compared with which."""

    same = "same"  # each with its corresponding layer
    all = "all"  # each with each


@dataclass(frozen=True)
class CkaSettings:
    """How checkpoints are compared: `memory` is in bytes, `seed` orders the examples."""

    pairs: Pairs = Pairs.same
    estimator: Estimator = Estimator.auto
    kernel: Kernel = Kernel.linear
    bandwidth: float = 1.0
    precision: Precision = Precision.float32
    batch_size: int = 256
    seed: int = 0
    memory: int = MEMORY
