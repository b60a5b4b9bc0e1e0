"""The figures of the paper: rows go in, a matplotlib figure comes out.

Start with `drawing`, whose `draw` turns the rows of a table into the figure of one kind. Each kind
has a module: `similarity` (Figures 1 and 3, which `by_epoch` and `by_layer` draw), `stitching`
(Figure 2), `supplement`, `heatmap` and `training`. They share `options` (what one may ask of a
figure), `rows` and `selection` (which columns and rows it shows), `curves` (means and deviations),
`layer_axis` and `stages` (of a network, by the names of its layers), `bounds` (floor and ceiling of
CKA), `colors` and `style` (what figures look like), `saving` and `terminal`.

The paper is Gupta, Saha, Rai, "Understanding Memorization using Representation Similarity Analysis
and Model Stitching", UniReps 2024.
"""

from pathlib import Path
from typing import Any

import lazy_loader

from memtool import MemtoolError
from memtool.errors import one_line

SETTINGS = "matplotlibrc"  # which matplotlib reads first in the working directory

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def check_settings() -> None:
    """Raise MemtoolError if matplotlib, as it is imported, would wait for its settings."""
    if Path(SETTINGS).is_fifo():
        raise MemtoolError(
            f"{SETTINGS}: a FIFO, from which matplotlib would read its settings; remove it"
        )


def __getattr__(name: str) -> Any:
    check_settings()
    try:
        return _load(name)
    except (OSError, ValueError) as error:  # in what matplotlib reads as it is imported
        raise MemtoolError(
            "matplotlib cannot start with its settings, $MPLBACKEND or a file matplotlibrc in this "
            f"folder, in ~/.config/matplotlib or where $MATPLOTLIBRC says: {one_line(error)}"
        ) from error
