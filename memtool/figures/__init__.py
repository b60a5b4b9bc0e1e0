"""The figures of the paper: rows go in, a matplotlib figure comes out.

Start with `drawing`, whose `draw` turns the rows of a table into the figure of one kind. Each kind
has a module: `similarity` (Figures 1 and 3), `stitching` (Figure 2), `heatmap` and `training`. They
share `rows` (which columns a figure needs, and grouping), `curves` (means and deviations) and
`style` (what figures look like, and saving them).

To add a figure, write a module that declares its `NEEDS` and draws rows that meet them, and give
its kind a name and an entry in `drawing`.

The paper is Gupta, Saha, Rai, "Understanding Memorization using Representation Similarity Analysis
and Model Stitching", UniReps 2024.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
