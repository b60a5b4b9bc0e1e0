"""Choices that the command line offers and the library takes; apart, because torch is slow to
import and help and completion need them."""

from enum import StrEnum


class Estimator(StrEnum):
    """How HSIC is estimated."""

    exact = "exact"  # the biased estimator on all n examples at once, the paper's


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
