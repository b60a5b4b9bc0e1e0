"""The supplement of the paper: CKA of stitched models with the clean model, layer by layer."""

import logging
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memtool import MemtoolError
from memtool.figures.bounds import draw_floor
from memtool.figures.by_layer import draw_layers, finished
from memtool.figures.colors import Style
from memtool.figures.curves import curve, cut_name, run
from memtool.figures.layer_axis import LayerAxis, without_shortcuts
from memtool.figures.options import LAST, SUPPLEMENTED, Options
from memtool.figures.rows import Needs, Rows, groups, in_order, usable
from memtool.figures.selection import few, of_epochs, of_layers, of_ratios
from memtool.figures.similarity import check_corresponding, is_stitched, networks
from memtool.figures.stitching import NOISY
from memtool.figures.style import CUT_COLORS, panel_grid, styles_of
from memtool.tables import CkaRow, Row

Ends = tuple[float | None, float | None]  # the noise ratios of front and back, None if unknown

logger = logging.getLogger("memtool")

NEEDS: Needs = Needs(
    CkaRow,
    columns=("checkpoint", "reference", "layer", "reference_layer", "cka", "noise_ratio"),
    conditions=("estimator", "kernel", "bandwidth", "data", "n"),
    optional=(
        *("same_as", "cka_null", "model", "reference_model", "epoch"),
        *("seed", "order_seed", "noise_kind", "noise_seed"),
        *("front_layer", "front_noise_ratio", "front_noise_seed", "front_seed"),
        *("back_layer", "back_noise_ratio", "back_noise_seed", "back_seed"),
        *("reference_noise_ratio", "reference_noise_seed", "reference_seed"),
        *("reference_order_seed", "sample_seed", "precision"),
    ),
)
STITCHING = "stitching"  # the layer between both parts
OPEN: Style = {"markerfacecolor": "white", "markeredgewidth": 0.7, "markersize": 4}
AFTER: Style = {"color": "0.4", "marker": "o", "label": "after the cut"}
BEFORE: Style = {**AFTER, **OPEN, "label": "before the cut"}
STEP: dict[str, Any] = {"linestyle": ":", "linewidth": 0.8}  # from before the cut to after it


def choose(rows: Rows, options: Options) -> list[Row]:
    """The rows of stitched models, and of the noisy networks alone, that are asked for: of the
    latter, those of the last epoch and of the references that the former are compared with.

    Unless noise ratios are named, they are of a few, evenly chosen, and clean networks stitched to
    clean ones are left out; a note says which ratios are shown.

    Raises MemtoolError if there are none, or if they are for a heatmap.
    """
    check_corresponding(rows)
    if rows and not any(map(is_stitched, rows)):
        raise MemtoolError(
            "supplement: no row is of a stitched model; make some with memtool stitch --save, and "
            "compare them with the clean model by memtool cka"
        )
    references = {row["reference"] for row in rows if is_stitched(row)}
    alone = [row for row in rows if not is_stitched(row) and row["reference"] in references]
    rows = [*filter(is_stitched, rows), *of_epochs(alone, [LAST], run)]
    rows = in_order(rows, networks, lambda row: row["reference_layer"])
    rows = of_layers(rows, options.layers, "reference_layer")
    if options.ratios:
        return of_ratios(rows, options.ratios, noisy_ratio)
    there = {noisy_ratio(row) for row in rows if is_stitched(row)} - {None}
    shown = few(sorted(ratio for ratio in there if ratio) or [0.0], SUPPLEMENTED)
    if there <= {*shown}:
        return list(rows)
    told = ", ".join(f"{100 * ratio:g}%" for ratio in shown)
    logger.info(f"supplement: of {len(there)} noise ratios, {told}; --ratios chooses others")
    return [row for row in rows if noisy_ratio(row) in (*shown, None)]


def noisy_ratio(row: Row) -> float | None:
    """The noise ratio of a network or of the noisier end of a stitched model; None if unknown."""
    if not is_stitched(row):
        ratio: float | None = row["noise_ratio"]
        return ratio
    return max((ratio for ratio in _ends(row) if ratio is not None), default=None)


def draw(rows: Rows, options: Options) -> Figure:
    """CKA against the layers of the reference, in order of execution: a curve per cut, and a panel
    per pair of noise ratios of front and back.

    At the cut there are two values, before and after the stitching layer: markers are open up to
    the first, filled from the second on, and a dotted line leads from one to the other. Noisy
    networks alone, where the table has them, are drawn dashed beside the models made of them.
    """
    rows = [_at_reference_layer(row) for row in usable(rows, "cka")]
    axis = LayerAxis.of(rows, options.marks)
    rows = axis.placed(rows)
    stitched, noisy = ([row for row in rows if is_stitched(row) is one] for one in (True, False))
    noisy = [row for row in noisy if row["noise_ratio"]]
    cuts = list(groups(stitched, cut_name))
    styles = styles_of(cuts, [f"k = {k} ({cut})" for k, cut in enumerate(cuts, 1)], CUT_COLORS)
    ends = dict(sorted(groups(stitched, _ends).items(), key=lambda item: _rank(item[0])))
    figure, panels = panel_grid(*_laid_out(list(ends)), options.width)
    for axes, (key, group) in zip(panels, ends.items(), strict=True):
        alone = [row for row in noisy if row["noise_ratio"] in key]
        draw_floor(axes, without_shortcuts(group), x="place", names=axis.layers)
        draw_layers(axes, alone, style=NOISY, axis=axis, marked=())
        for cut, models in groups(group, cut_name).items():
            _draw_cut(axes, models, styles[cut], axis)
    lines = [*styles.values(), BEFORE, AFTER, *([NOISY] if noisy else [])]
    return finished(
        figure,
        panels,
        axis,
        ylabel=_label(rows),
        rows=rows,
        ceiling=[],
        styles=lines,
        legend_title="cut",
    )


def _label(rows: Rows) -> str:
    clean = all(row["reference_noise_ratio"] == 0 for row in rows)
    return f"CKA to {'clean' if clean else 'reference'} model"


def _at_reference_layer(row: Row) -> Row:
    """The row with the names of the reference's layers as its own; `is_before` tells whether it is
    of the front of a stitched model."""
    same_as = row["same_as"]
    if is_stitched(row) and same_as:
        same_as = None if same_as == STITCHING else same_as.partition(".")[2] or None
    layer, is_before = row["reference_layer"], row["layer"].startswith("front.")
    return {**row, "layer": layer, "same_as": same_as, "is_before": is_before}


def _ends(row: Row) -> Ends:
    return row["front_noise_ratio"], row["back_noise_ratio"]


def _direction(front: float | None, back: float | None) -> int:
    """0 for a front that is noisier than the back, 1 for the reverse, 2 for neither."""
    if front == back or None in (front, back):
        return 2
    return int((front or 0) < (back or 0))


def _rank(ends: Ends) -> tuple[float, int]:
    """Panels in a line for each noise ratio, in a column for each direction."""
    return max((ratio for ratio in ends if ratio is not None), default=-1), _direction(*ends)


def _laid_out(ends: Sequence[Ends]) -> tuple[list[str | None], int]:
    """The titles of panels line by line, None where a ratio lacks a direction that another has, and
    their number in a line. `ends` are in the order of `_rank`.

    >>> _laid_out([(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)])[0][:3]
    [None, None, 'clean front and back']
    """
    directions = sorted({_direction(*key) for key in ends})
    if len(directions) == 1 or len({_rank(key) for key in ends}) < len(ends):
        return [_title(*key) for key in ends], 3
    titles = {_rank(key): _title(*key) for key in ends}
    ratios = dict.fromkeys(ratio for ratio, _ in titles)
    return [titles.get((ratio, way)) for ratio in ratios for way in directions], len(directions)


def _title(front: float | None, back: float | None) -> str:
    """What is stitched, in words.

    >>> _title(0.5, 0.0), _title(0.5, 0.5)
    ('front of r = 50 %, clean back', 'front and back of r = 50 %')
    """
    if front == back:
        return _named("front and back", front)
    return f"{_named('front', front)}, {_named('back', back)}"


def _named(end: str, ratio: float | None) -> str:
    if ratio == 0:
        return f"clean {end}"
    return f"{end} of " + ("unknown r" if ratio is None else f"r = {100 * ratio:g} %")


def _draw_cut(axes: Axes, rows: Rows, style: Style, axis: LayerAxis) -> None:
    """Draw the models stitched at one cut."""
    parts = groups(rows, lambda row: bool(row["is_before"]))
    before, after = (parts.get(part, []) for part in (True, False))
    at = [max((row["place"] for row in before), default=-1)]
    at += [min((row["place"] for row in after), default=-1)]
    marked = {*axis.marked, *at}
    label = {"label": f"{style['label']}, before the cut"}
    draw_layers(axes, before, style=style | OPEN | label, axis=axis, marked=marked)
    draw_layers(axes, after, style=style, axis=axis, marked=marked)
    step = [
        mean
        for part, place in zip((before, after), at, strict=True)
        for mean in curve([row for row in part if row["place"] == place], "place", "cka").mean
    ]
    if len(step) == 2:
        axes.plot(at, step, color=style["color"], **STEP)
