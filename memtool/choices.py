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


class Study(StrEnum):
    """What is reproduced."""

    digits = "digits"
