"""What is done in a reproduction, as data; without torch, so that the command line starts fast."""

from dataclasses import dataclass
from enum import StrEnum

RATIOS = (0, 5, 10, 15, 20, 25, 37.5, 50, 67.5)  # noise ratios of the paper, in percent

# The figures by their kind, as memtool plot names it, and the files they go to, without suffix.
FIGURES = {
    "convergence": "figure1-convergence",
    "stitching": "figure2-stitching",
    "divergence": "figure3-divergence",
    "training": "training",
}

# One thread per step: these networks are too small for more, and the last digits of a sum depend on
# the number of threads, which must not depend on how many steps run at once.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


class Study(StrEnum):
    """The data set that the paper is reproduced on."""

    digits = "digits"


@dataclass(frozen=True)
class Recipe:
    """What a study does for every noise ratio and seed; strings are options as one types them.

    The clean model, which the others are compared with, is that of noise ratio 0.
    """

    data: str
    train: str  # options of memtool train
    epochs: tuple[int, ...]  # whose checkpoints are compared
    layers: str  # memtool cka --layers
    cuts: str  # memtool stitch --at
    ratios: tuple[float, ...] = RATIOS  # in percent


RECIPES = {
    Study.digits: Recipe(
        data="digits",
        train="--model digits-cnn --save-every 1",
        epochs=tuple(range(1, 21)),
        layers="block?,fc",
        cuts="block?",
    ),
}
