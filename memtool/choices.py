"""Choices that the command line offers and the library takes; apart, because torch is slow to
import and help and completion need them."""

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


class Precision(StrEnum):
    """What networks compute in."""

    float32 = "float32"
    tf32 = "tf32"  # on CUDA, products of 10-bit mantissas; elsewhere the same as float32
    bf16 = "bf16"  # torch's autocast; Gram matrices stay float32


class Pairs(StrEnum):
    """Which layers are compared with which."""

    same = "same"  # each with its corresponding layer
    all = "all"  # each with each


class Start(StrEnum):
    """What a stitching layer is before it is trained."""

    lstsq = "lstsq"  # the least-squares map from the front's activations to the back's
    identity = "identity"
    random = "random"  # torch's own initialization


class Connector(StrEnum):
    """What kind of map a stitching layer is."""

    auto = "auto"  # conv1x1 for maps of channels, linear for vectors and tokens
    conv1x1 = "conv1x1"  # the same affine map of the channels at each position
    linear = "linear"  # of vectors and of each token; maps are flattened first
    none = "none"  # the identity, nothing to train


class Study(StrEnum):
    """What is reproduced."""

    digits = "digits"
