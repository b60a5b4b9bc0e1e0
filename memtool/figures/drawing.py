"""Which figures there are, which one a table calls for, and drawing it."""

from collections.abc import Callable
from dataclasses import fields
from enum import StrEnum
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from memtool import MemtoolError
from memtool.figures import heatmap, similarity, stitching, supplement, training
from memtool.figures.letters import families, warn_of_escapes
from memtool.figures.options import Options
from memtool.figures.rows import Needs, Rows, common_columns, listed
from memtool.figures.style import LOOK, Drawing, add_title
from memtool.tables import PointRow, Row


class Kind(StrEnum):
    """The kinds of figures."""

    convergence = "convergence"
    divergence = "divergence"
    stitching = "stitching"
    supplement = "supplement"
    heatmap = "heatmap"
    training = "training"


class Design(NamedTuple):
    """A kind of figure: what it needs of a table, which of the rows it shows, and how.

    `takes` names the options, beyond those of every figure, that it heeds.
    """

    needs: Needs
    choose: Callable[[Rows, Options], list[Row]]
    draw: Callable[[Rows, Options], Figure]
    takes: tuple[str, ...]


OF_CKA = ("x", "layers", "ratios", "epochs", "marks")
OF_EVERY_FIGURE = ("width", "title", "style")
FIGURES: dict[Kind, Design] = {
    Kind.convergence: Design(
        needs=similarity.NEEDS,
        choose=similarity.of_convergence,
        draw=similarity.draw_convergence,
        takes=OF_CKA,
    ),
    Kind.divergence: Design(
        needs=similarity.NEEDS,
        choose=similarity.of_divergence,
        draw=similarity.draw_divergence,
        takes=OF_CKA,
    ),
    Kind.stitching: Design(
        needs=stitching.NEEDS,
        choose=stitching.choose,
        draw=stitching.draw,
        takes=("layers", "ratios", "net_of_control"),
    ),
    Kind.supplement: Design(
        needs=supplement.NEEDS,
        choose=supplement.choose,
        draw=supplement.draw,
        takes=("layers", "ratios", "marks"),
    ),
    Kind.heatmap: Design(
        needs=heatmap.NEEDS,
        choose=heatmap.choose,
        draw=heatmap.draw,
        takes=("layers", "marks"),
    ),
    Kind.training: Design(
        needs=training.NEEDS,
        choose=training.choose,
        draw=training.draw,
        takes=("ratios", "epochs"),
    ),
}


def recognize(rows: Rows) -> Kind:
    """The kind of figure that the columns and values of a table call for.

    A table of CKA is a heatmap if it compares a layer with several reference layers, and a
    supplement if it has rows of stitched models. Otherwise it is a convergence if every reference
    belongs to the same run as its checkpoint (same noise ratio, same seed), a divergence if every
    one is compared with another run.

    Raises MemtoolError if no figure can be drawn from these columns, or both of the latter can.
    """
    columns = common_columns(rows)
    kinds = {kind for kind in FIGURES if columns.issuperset(FIGURES[kind].needs.columns)}
    for kind in (Kind.stitching, Kind.training):
        if kind in kinds:
            return kind
    if Kind.heatmap in kinds and similarity.several_reference_layers(heatmap.NEEDS.select(rows)):
        return Kind.heatmap
    if Kind.convergence in kinds:
        selected = similarity.NEEDS.select(rows)
        if any(map(similarity.is_stitched, selected)):
            return Kind.supplement
        return _of_cka(selected)
    if len({frozenset(row) for row in rows}) > 1:
        raise MemtoolError(
            "no figure has room for all of these rows, whose columns differ: draw tables of one "
            "kind, or name the figure to see which row does not belong there"
        )
    raise MemtoolError(
        f"no figure for a table with the columns {listed(sorted(columns)) or '(none)'}; "
        f"the kinds are {', '.join(Kind)}: name one to see which columns it lacks"
    )


def _of_cka(rows: Rows) -> Kind:
    """Convergence or divergence; raises MemtoolError for a table of both."""
    references = set(map(similarity.reference_run, rows))
    others = similarity.of_other_runs(rows)
    if others and others != references:
        raise MemtoolError(
            "the table compares checkpoints with their own runs and with another: name the figure, "
            "convergence or divergence"
        )
    return Kind.divergence if others else Kind.convergence


def check_options(kind: Kind, options: Options) -> None:
    """Raise MemtoolError for an option that figures of this kind do not take."""
    takes = (*FIGURES[kind].takes, *OF_EVERY_FIGURE)
    for one in fields(Options):
        if one.name not in takes and getattr(options, one.name) != getattr(Options(), one.name):
            raise MemtoolError(
                f"a figure of kind {kind} has no option {one.name}; it takes {', '.join(takes)}"
            )


def draw(kind: Kind | str, rows: Rows, options: Options = Options()) -> Figure:
    """Draw rows as a figure of the paper.

    - `convergence` (Figure 1): CKA of each checkpoint to the final model of its own run, against
      the epoch, one panel per layer; or against the layer, one panel per noise ratio.
    - `divergence` (Figure 3): the same to a reference from another run, such as the final clean
      model, with the CKA of a second clean network as a ceiling.
    - `stitching` (Figure 2): test accuracy of stitched models against the noise ratio; one panel
      per direction, one curve per cut.
    - `supplement`: CKA of stitched models to the clean one, layer by layer; one panel per pair of
      noise ratios, one curve per cut.
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
        options: Which rows to show, which view of them, the size and the look.

    Returns:
        A matplotlib figure, which is not registered with pyplot; write it with `save`.

    Raises:
        MemtoolError: If the kind is unknown or does not take an option, the rows lack a column or a
            value that the figure needs, or they mix conditions (such as the estimator of CKA) that
            a figure shows one of.

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
    if kind not in list(Kind):
        raise MemtoolError(f"no figure {str(kind)!r}; there are {', '.join(Kind)}")
    check_options(Kind(kind), options)
    needs, choose, draw_rows, _ = FIGURES[Kind(kind)]
    needs.check_columns(rows, kind)
    rows = choose(needs.select(rows), options)
    needs.check_conditions(rows, kind)
    with matplotlib.rc_context(LOOK | options.style):
        texts = [*rows, {"title": options.title}]
        matplotlib.rcParams["font.family"] = families(texts)
        figure = draw_rows(rows, options)
        add_title(figure, options.title)
        warn_of_escapes(figure, texts)
    return figure


def points(figure: Figure) -> list[PointRow]:
    """What a figure that `draw` returned shows: a row for each mean, with its deviation."""
    return figure.points if isinstance(figure, Drawing) else []
