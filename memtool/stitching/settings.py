"""What the user chooses for stitching. Apart from the rest, because torch is slow to import."""

from enum import StrEnum


class Init(StrEnum):
    """How a stitching layer is initialized."""

    lstsq = "lstsq"  # the least-squares map from the front's activations to the back's
    identity = "identity"
    random = "random"  # as torch.nn.Linear is


class Direction(StrEnum):
    """What is stitched to what, for each front F and the back B that were named."""

    forward = "forward"  # the front of F to the back of B
    reverse = "reverse"  # the front of B to the back of F
    control = "control"  # the front of F to its own back
