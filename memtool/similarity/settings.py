"""What the command line offers to choose from; apart, because torch is slow to import."""

from enum import StrEnum


class Estimator(StrEnum):
    """How HSIC is estimated."""

    auto = "auto"  # exact where it fits into memory, minibatch where it does not
    exact = "exact"  # the biased estimator on all n examples at once, the paper's
    unbiased = "unbiased"  # the unbiased one on all n examples at once
    minibatch = "minibatch"  # the unbiased one, averaged over batches


class Kernel(StrEnum):
    """What Gram matrices are made of."""

    linear = "linear"  # inner products of features
    rbf = "rbf"  # exp(-distance^2 / (2 sigma^2)), sigma a fraction of the median distance


class Pairs(StrEnum):
    """Which layers are compared with which."""

    same = "same"  # each with its corresponding layer
    all = "all"  # each with each
