"""What is reproduced."""

from enum import StrEnum


class Study(StrEnum):
    """What is reproduced."""

    digits = "digits"
