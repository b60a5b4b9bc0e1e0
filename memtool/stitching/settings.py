"""What the command line offers to choose from; apart, because torch is slow to import."""

from enum import StrEnum


class Start(StrEnum):
    """What a stitching layer is before it is trained."""

    lstsq = "lstsq"  # the least-squares map from the front's activations to the back's
    identity = "identity"
    random = "random"  # torch's own initialization
