"""Which figures there are, which one a table calls for, and drawing it."""

from collections.abc import Callable
from enum import StrEnum

import matplotlib
from matplotlib.figure import Figure

from memtool import MemtoolError
from memtool.figures import heatmap, similarity, stitching, training
from memtool.figures.letters import families, warn_of_escapes
from memtool.figures.rows import Needs, Rows, common_columns, listed
from memtool.figures.style import LOOK


class Kind(StrEnum):
    """The kinds of figures."""

    convergence = "convergence"
    divergence = "divergence"
    stitching = "stitching"
    heatmap = "heatmap"
    training = "training"


FIGURES: dict[Kind, tuple[Needs, Callable[[Rows], Figure]]] = {
    Kind.convergence: (similarity.NEEDS, similarity.draw_convergence),
    Kind.divergence: (similarity.NEEDS, similarity.draw_divergence),
    Kind.stitching: (stitching.NEEDS, stitching.draw),
    Kind.heatmap: (heatmap.NEEDS, heatmap.draw),
    Kind.training: (training.NEEDS, training.draw),
}


def recognize(rows: Rows) -> Kind:
    """The kind of figure that the columns and values of a table call for.

    A table of CKA is a heatmap if it compares a layer with several reference layers. Otherwise it
    is a convergence if every reference belongs to the same run as its checkpoint (same noise ratio,
    same seed), else a divergence.

    Raises MemtoolError if no figure can be drawn from these columns.
    """
    columns = common_columns(rows)
    kinds = {kind for kind, (needs, _) in FIGURES.items() if columns.issuperset(needs.columns)}
    for kind in (Kind.stitching, Kind.training):
        if kind in kinds:
            return kind
    if Kind.heatmap in kinds and similarity.several_reference_layers(heatmap.NEEDS.select(rows)):
        return Kind.heatmap
    if Kind.convergence in kinds:
        same_run = all(map(similarity.same_run, similarity.NEEDS.select(rows)))
        return Kind.convergence if same_run else Kind.divergence
    raise MemtoolError(
        f"no figure for a table with the columns {listed(sorted(columns)) or '(none)'}; "
        f"the kinds are {', '.join(Kind)}: name one to see which columns it lacks"
    )


def draw(kind: Kind | str, rows: Rows, *, net_of_control: bool = False) -> Figure:
    """Draw rows as a figure of the paper.

    - `convergence` (Figure 1): CKA of each checkpoint to the final model of its own run, against
      the epoch; one panel per layer.
    - `divergence` (Figure 3): the same to a reference from another run, such as the final clean
      model.
    - `stitching` (Figure 2): test accuracy of stitched models against the noise ratio; one panel
      per direction, one curve per cut.
    - `heatmap`: CKA of each layer with each reference layer; one panel per pair of checkpoints.
    - `training`: loss and accuracies against the epoch.

    Rows that agree in all that a figure shows (layer or cut, noise ratio, epoch), because they come
    from several seeds, become one point: their mean, with the sample standard deviation as a light
    band, or as error bars in `stitching`.

    Args:
        kind: The kind of figure; `recognize` finds it for a table.
        rows: Rows of `memtool train`, `cka` or `stitch`, as dictionaries from column names to
            numbers or strings, or None for an empty cell. Columns that the figure does not use do
            not matter.
        net_of_control: For `stitching`, draw the test accuracy minus that of the control at the
            same cut.

    Returns:
        A matplotlib figure, which is not registered with pyplot; write it with `save`.

    Raises:
        MemtoolError: If the kind is unknown, the rows lack a column or a value that the figure
            needs, or they mix conditions (such as the estimator of CKA) that a figure shows one of.

    >>> losses = {0.0: [1.2, 0.3], 0.5: [2.1, 1.7]}
    >>> rows = [
    ...     {
    ...         "checkpoint": f"r{ratio}.safetensors",
    ...         "noise_ratio": ratio,
    ...         "epoch": epoch,
    ...         "loss": loss,
    ...         "given_accuracy": None,
    ...         "true_accuracy": None,
    ...         "mislabelled_accuracy": None,
    ...         "test_accuracy": 1 - ratio,
    ...     }
    ...     for ratio, values in losses.items()
    ...     for epoch, loss in enumerate(values, start=1)
    ... ]
    >>> figure = draw("training", rows)
    >>> [axes.get_title() for axes in figure.axes]
    ['loss', 'test accuracy']
    >>> [text.get_text() for text in figure.legends[0].get_texts()]  # noise ratios in percent
    ['0', '50']
    """
    if kind not in set(Kind):
        raise MemtoolError(f"no figure {str(kind)!r}; there are {', '.join(Kind)}")
    needs, draw_rows = FIGURES[Kind(kind)]
    if net_of_control:
        if kind != Kind.stitching:
            raise MemtoolError(f"{kind} has no control")
        draw_rows = stitching.draw_net_of_control
    needs.check(rows, kind)
    rows = needs.select(rows)
    with matplotlib.rc_context(LOOK | {"font.family": families(rows)}):
        figure = draw_rows(rows)
        warn_of_escapes(figure, rows)
    return figure
