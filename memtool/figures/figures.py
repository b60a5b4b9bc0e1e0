"""The figures of the paper: rows in, matplotlib Figure out.

Gupta, Saha, Rai, "Understanding Memorization using Representation Similarity Analysis and Model
Stitching", UniReps 2024: `convergence` is Figure 1, `stitching` Figure 2, `divergence` Figure 3.
`heatmap` and `training` show what the paper describes in words.

A row maps column names to int, float, str, or None for an empty cell. Rows that agree in what a
figure shows (layer or cut, noise ratio, epoch) and come from several seeds become one point: their
mean, with the sample standard deviation as a light band (error bars in `stitching`). Every function
raises MemtoolError if a column that it needs is missing, if the rows mix conditions (CONDITIONS)
or if no row has a value.
"""

import math
import textwrap
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, BinaryIO, NamedTuple, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from memtool import MemtoolError

Row = Mapping[str, Any]
Rows = Sequence[Row]
Run = float | str  # what names a curve: the noise ratio, or the checkpoint where that is unknown
Style = dict[str, Any]  # keyword arguments of Axes.plot
Key = TypeVar("Key", bound=Hashable)


class Kind(StrEnum):
    """The figures there are."""

    convergence = "convergence"
    divergence = "divergence"
    stitching = "stitching"
    heatmap = "heatmap"
    training = "training"


TRAINING_PANELS = {
    "loss": "loss",
    "given_accuracy": "accuracy on given labels",
    "true_accuracy": "accuracy on true labels",
    "mislabelled_accuracy": "memorization (mislabelled part)",
    "test_accuracy": "test accuracy",
}
DIRECTIONS = {
    "forward": "noisy front, clean back",
    "reverse": "clean front, noisy back",
    "control": "noisy front, own back (control)",
}

COMPARISON = ("checkpoint", "reference", "layer", "reference_layer", "cka")
COLUMNS = {
    Kind.convergence: (*COMPARISON, "epoch", "noise_ratio"),
    Kind.divergence: (*COMPARISON, "epoch", "noise_ratio"),
    Kind.stitching: (
        *("direction", "test_accuracy"),
        *("front", "front_layer", "front_noise_ratio", "front_accuracy"),
        *("back", "back_layer", "back_noise_ratio", "back_accuracy"),
    ),
    Kind.heatmap: COMPARISON,
    Kind.training: ("checkpoint", "epoch", "noise_ratio", *TRAINING_PANELS),
}
# What may not change within a figure, where the table has it: means over it would mislead.
CONDITIONS = {
    Kind.convergence: ("estimator", "kernel"),
    Kind.divergence: ("estimator", "kernel"),
    Kind.stitching: ("batch_norm", "init", "optimizer", "epochs", "learning_rate", "batch_size"),
    Kind.heatmap: ("estimator", "kernel"),
    Kind.training: ("model", "data", "noise_kind"),
}

NOISE_RATIO = "noise ratio r (%)"
NOISE_COLORS = "plasma"
CUT_COLORS = "viridis"
LIGHTEST = 0.8  # position in a colour map; what lies beyond is too light for white paper
MARKERS = "os^Dv*Xp<>"
CLEAN: Style = {"color": "black", "linestyle": ":", "zorder": 3, "label": "clean model"}
NOISY: Style = {"color": "#00B4D8", "linestyle": "--", "zorder": 3, "label": "noisy model"}
NO_GAIN: Style = {**CLEAN, "label": "as the control"}
SPARSE = 0.25  # distance between markers along a curve of many epochs, in panel diagonals

COLUMN_WIDTH, PAGE_WIDTH = 3.3, 6.9  # inches, of the usual two-column page
COLORBAR = 0.6  # inches
LOOK: dict[Any, Any] = {
    "font.size": 8,
    "figure.labelsize": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "legend.fontsize": 7,
    "legend.title_fontsize": 8,
    "legend.frameon": False,
    "legend.columnspacing": 1.2,
    "text.parse_math": False,  # a file name may hold dollar signs
}
SAVING: dict[Any, Any] = {
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: journals refuse matplotlib's default, Type 3
    "svg.hashsalt": "memtool",  # else the ids in an SVG are random
}
METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "png": {},
    "svg": {"Date": None},
}


def recognize(rows: Rows) -> Kind:
    """The figure that the columns and values of a table call for.

    A CKA table is a heatmap if it compares a layer with several reference layers, a convergence
    if every reference belongs to the same run as its checkpoint (same noise ratio, same seed),
    and a divergence otherwise.

    Raises MemtoolError if no figure can be drawn from these columns.
    """
    columns = _columns(rows)
    kinds = {kind for kind, needed in COLUMNS.items() if columns.issuperset(needed)}
    for kind in (Kind.stitching, Kind.training):
        if kind in kinds:
            return kind
    if Kind.heatmap in kinds and _several_reference_layers(rows):
        return Kind.heatmap
    if Kind.convergence in kinds:
        return Kind.convergence if all(map(_same_run, rows)) else Kind.divergence
    raise MemtoolError(
        f"no figure for a table with the columns {', '.join(sorted(columns)) or '(none)'}; "
        f"the kinds are {', '.join(Kind)}: name one to see which columns it lacks"
    )


def draw(kind: Kind, rows: Rows) -> Figure:
    """The figure of one kind."""
    figures = {
        Kind.convergence: convergence,
        Kind.divergence: divergence,
        Kind.stitching: stitching,
        Kind.heatmap: heatmap,
        Kind.training: training,
    }
    return figures[kind](rows)


def save(figure: Figure, stream: BinaryIO, format: str) -> None:
    """Write a figure; equal figures give equal bytes.

    Raises MemtoolError if the format is not pdf, png or svg.
    """
    if format not in METADATA:
        raise MemtoolError(f"no figure format {format!r}; there are {', '.join(METADATA)}")
    # LOOK again, since matplotlib makes ticks when it draws them.
    with matplotlib.rc_context(LOOK | SAVING):
        figure.savefig(stream, format=format, metadata=METADATA[format])


@matplotlib.rc_context(LOOK)
def convergence(rows: Rows) -> Figure:
    """Figure 1: CKA of every checkpoint to the final model of its own run, a panel per layer.

    With a single epoch a run there is no time axis: then one panel, CKA against the layer.
    """
    _check(Kind.convergence, rows)
    return _similarity(rows, "CKA to final model")


@matplotlib.rc_context(LOOK)
def divergence(rows: Rows) -> Figure:
    """Figure 3: CKA of every checkpoint to the final clean model, a panel per layer.

    With a single epoch a run there is no time axis: then one panel, CKA against the layer. The
    axis says "clean" only if the rows do (reference_noise_ratio 0).
    """
    _check(Kind.divergence, rows)
    clean = all(row.get("reference_noise_ratio") == 0 for row in rows)
    return _similarity(rows, "CKA to final clean model" if clean else "CKA to reference model")


@matplotlib.rc_context(LOOK)
def stitching(rows: Rows, net_of_control: bool = False) -> Figure:
    """Figure 2: test accuracy of stitched models against the noise ratio, a panel per direction.

    One curve per cut; black dotted: the clean networks alone (noise ratio 0, whichever end of a
    row they are); cyan dashed: the noisy networks alone. Of a curve over epochs the last counts.
    With `net_of_control` each row's control is taken off, and a dotted line is drawn at 0.

    Raises MemtoolError for an unknown direction or noise ratio, or without controls to take off.
    """
    _check(Kind.stitching, rows)
    rows = [row for row in rows if row.get("epoch") in (None, row.get("epochs"))]
    rows = _usable(rows, "test_accuracy")
    if net_of_control:
        return _net_of_control(rows)
    groups = _groups(rows, lambda row: row["direction"])
    if unknown := [name for name in groups if name not in DIRECTIONS]:
        raise MemtoolError(f"no direction {unknown[0]!r}; there are {', '.join(DIRECTIONS)}")
    directions = [name for name in DIRECTIONS if name in groups]
    cuts = list(dict.fromkeys(map(_cut, rows)))
    styles = _styles(cuts, cuts, CUT_COLORS)
    clean = _clean_accuracy(rows)

    figure, panels = _grid([DIRECTIONS[name] for name in directions], columns=len(directions))
    for axes, direction in zip(panels, directions, strict=True):
        if clean is not None:
            axes.axhline(clean, **CLEAN)
        _stitched(axes, groups[direction], _noisy_end(direction), styles)
    lines = [*styles.values(), *([] if clean is None else [CLEAN]), NOISY]
    _label(figure, NOISE_RATIO, "test accuracy", lines, "cut")
    return figure


@matplotlib.rc_context(LOOK)
def heatmap(rows: Rows) -> Figure:
    """CKA in [0, 1] of every layer with every reference layer, a panel per pair of checkpoints.

    Layers run from the first (bottom left) to the last; cells without a value are grey.

    Raises MemtoolError if the rows fill a cell twice: here nothing is averaged.
    """
    _check(Kind.heatmap, rows)
    _usable(rows, "cka")
    pairs = _groups(rows, lambda row: (row["checkpoint"], row["reference"]))
    margin = _names_length(rows) + 0.5
    layers = max(len(_positions(group, "layer")) for group in pairs.values())
    side = max(2.0, min(0.09 * layers, PAGE_WIDTH - COLORBAR - margin))
    columns = min(len(pairs), max(1, int((PAGE_WIDTH - COLORBAR) / (side + margin))))
    lines = math.ceil(len(pairs) / columns)

    size = (columns * (side + margin) + COLORBAR, lines * (side + margin))
    figure = Figure(figsize=size, layout="compressed")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, ((checkpoint, reference), group) in zip(grid, pairs.items(), strict=False):
        image = _matrix(axes, group, side)
        axes.set_xlabel(f"layer of {_short(reference)}")
        axes.set_ylabel(f"layer of {_short(checkpoint)}")
    for axes in grid[len(pairs) :]:
        axes.remove()
    figure.colorbar(image, ax=list(grid[: len(pairs)]), label="CKA", fraction=0.05)
    return figure


@matplotlib.rc_context(LOOK)
def training(rows: Rows) -> Figure:
    """Loss (nats) and accuracies in [0, 1] against the epoch, a curve per noise ratio.

    What no row has a value for gets no panel: memorization, if nothing was mislabelled.
    """
    _check(Kind.training, rows)
    measures = [name for name in TRAINING_PANELS if any(row[name] is not None for row in rows)]
    if not measures:
        raise MemtoolError(f"no row has a value in any of {', '.join(TRAINING_PANELS)}")
    _require_epoch(rows)
    styles = _run_styles(rows)
    titles = [TRAINING_PANELS[name] for name in measures]
    figure, panels = _grid(titles, columns=3, sharey=False)
    for axes, measure in zip(panels, measures, strict=True):
        _curves(axes, rows, "epoch", measure, styles, markevery=SPARSE)
        if measure == "loss":
            axes.set_ylim(bottom=0)
        else:
            _unit_interval(axes)
    panels[0].xaxis.set_major_locator(_whole_numbers())
    _label(figure, "epoch", "", list(styles.values()), _legend_title(styles))
    return figure


# ---------------------------------------------------------------- similarity: Figures 1 and 3


def _similarity(rows: Rows, ylabel: str) -> Figure:
    """CKA against the epoch, or against the layer if no run has more than one epoch."""
    if _several_reference_layers(rows):
        raise MemtoolError(
            "the table compares a layer with several reference layers: draw it as a heatmap, "
            "or leave out `--pairs all` to compare corresponding layers"
        )
    rows = _usable(rows, "cka")
    runs = _groups(rows, _run).values()
    if any(len({row["epoch"] for row in run}) > 1 for run in runs):
        return _over_epochs(rows, ylabel)
    return _over_layers(rows, ylabel)


def _over_epochs(rows: Rows, ylabel: str) -> Figure:
    _require_epoch(rows)
    layers = _groups(rows, lambda row: row["layer"])
    styles = _run_styles(rows)
    figure, panels = _grid(list(layers), columns=4 if len(layers) <= 16 else 6)
    for axes, group in zip(panels, layers.values(), strict=True):
        _curves(axes, group, "epoch", "cka", styles, markevery=SPARSE)
    _unit_interval(panels[0])
    panels[0].xaxis.set_major_locator(_whole_numbers())
    _label(figure, "epoch", ylabel, list(styles.values()), _legend_title(styles))
    return figure


def _over_layers(rows: Rows, ylabel: str) -> Figure:
    layers = _positions(rows, "layer")
    rows = [{**row, "position": layers[row["layer"]]} for row in rows]
    styles = _run_styles(rows)
    width = COLUMN_WIDTH if len(layers) <= 20 else PAGE_WIDTH
    figure = Figure(figsize=(width, 2.2 + _names_length(rows)), layout="constrained")
    axes = figure.subplots()
    _curves(axes, rows, "position", "cka", styles)
    _unit_interval(axes)
    _layer_ticks(axes.xaxis, list(layers), width - 0.7)
    axes.tick_params(axis="x", rotation=90)
    _label(figure, "layer", ylabel, list(styles.values()), _legend_title(styles))
    return figure


# ---------------------------------------------------------------- stitching: Figure 2


def _net_of_control(rows: Rows) -> Figure:
    rows = [
        {**row, "test_accuracy": row["test_accuracy"] - row["control_accuracy"]}
        for row in rows
        if row["direction"] != "control" and row.get("control_accuracy") is not None
    ]
    if not rows:
        raise MemtoolError(
            "no row has a control to take off: stitch with --control and a direction beside it"
        )
    groups = _groups(rows, lambda row: row["direction"])
    cuts = list(dict.fromkeys(map(_cut, rows)))
    styles = _styles(cuts, cuts, CUT_COLORS)
    figure, panels = _grid([DIRECTIONS[name] for name in groups], columns=len(groups))
    for axes, (direction, group) in zip(panels, groups.items(), strict=True):
        axes.axhline(0, **NO_GAIN)
        _cut_curves(axes, group, _noisy_end(direction), styles)
    _label(figure, NOISE_RATIO, "test accuracy − control's", [*styles.values(), NO_GAIN], "cut")
    return figure


def _noisy_end(direction: str) -> str:
    """Which end of a row is the noisy network."""
    return "back" if direction == "reverse" else "front"


def _stitched(axes: Axes, rows: Rows, noisy: str, styles: Mapping[str, Style]) -> None:
    """Accuracy of the noisy networks alone, then of every cut; `noisy` is their end of a row."""
    _require_noise_ratio(rows, noisy)
    curve = _curve(rows, f"{noisy}_noise_ratio", f"{noisy}_accuracy")
    axes.plot(_percent(curve.x), curve.mean, **NOISY)
    _cut_curves(axes, rows, noisy, styles)


def _cut_curves(axes: Axes, rows: Rows, noisy: str, styles: Mapping[str, Style]) -> None:
    _require_noise_ratio(rows, noisy)
    for cut, group in _groups(rows, _cut).items():
        curve = _curve(group, f"{noisy}_noise_ratio", "test_accuracy")
        spread = curve.spread if any(curve.spread) else None
        axes.errorbar(_percent(curve.x), curve.mean, spread, elinewidth=0.6, **styles[cut])


def _cut(row: Row) -> str:
    front, back = row["front_layer"], row["back_layer"]
    return str(front) if front == back else f"{front} → {back}"


def _clean_accuracy(rows: Rows) -> float | None:
    """Mean over the networks with noise ratio 0, each counted once; None if there are none."""
    networks = {  # a dict, since a set has no order and sums of floats depend on it
        (row[end], row[f"{end}_accuracy"]): row[f"{end}_accuracy"]
        for row in rows
        for end in ("front", "back")
        if row[f"{end}_noise_ratio"] == 0 and row[f"{end}_accuracy"] is not None
    }
    return float(np.mean(list(networks.values()))) if networks else None


def _require_noise_ratio(rows: Rows, end: str) -> None:
    for row in rows:
        if row[f"{end}_noise_ratio"] is None:
            raise MemtoolError(
                f"{row[end]}: its noise ratio is unknown, so it has no place on the axis of noise "
                f"ratios; fill in the column {end}_noise_ratio or leave its rows out of the table"
            )


# ---------------------------------------------------------------- heatmap


def _matrix(axes: Axes, rows: Rows, side: float) -> AxesImage:
    """One heatmap, `side` inches wide; returns the image, for the colour bar."""
    layers = _positions(rows, "layer")
    references = _positions(rows, "reference_layer")
    cells = [(layers[row["layer"]], references[row["reference_layer"]]) for row in rows]
    if len(set(cells)) < len(cells):
        raise MemtoolError(
            f"{rows[0]['checkpoint']}: the table compares it with {rows[0]['reference']} more than "
            "once; a heatmap shows one comparison of two checkpoints"
        )
    matrix = np.full((len(layers), len(references)), np.nan)
    for cell, row in zip(cells, rows, strict=True):
        matrix[cell] = np.nan if row["cka"] is None else row["cka"]
    colors = matplotlib.colormaps["magma"].with_extremes(bad="0.75")
    image = axes.imshow(matrix, cmap=colors, vmin=0, vmax=1, origin="lower")
    _layer_ticks(axes.xaxis, list(references), side)
    _layer_ticks(axes.yaxis, list(layers), side)
    axes.tick_params(axis="x", rotation=90)
    if max(matrix.shape) <= 8:
        _write_values(axes, matrix)
    return image


def _write_values(axes: Axes, matrix: np.ndarray[Any, Any]) -> None:
    for (line, column), value in np.ndenumerate(matrix):
        if not math.isnan(value):
            color = "white" if value < 0.6 else "black"
            text = f"{value:.2f}"
            axes.text(column, line, text, color=color, size=5.5, ha="center", va="center")


# ---------------------------------------------------------------- rows


class Curve(NamedTuple):
    """Mean and sample standard deviation (0 for one value) at each x, in the order of x."""

    x: list[float]
    mean: list[float]
    spread: list[float]


def _curve(rows: Iterable[Row], x: str, y: str) -> Curve:
    """Column y against column x, without the empty cells of y."""
    present = [row for row in rows if row[y] is not None]
    points = sorted(_groups(present, lambda row: row[x]).items())
    values = [[row[y] for row in group] for _, group in points]
    return Curve(
        [at for at, _ in points],
        [float(np.mean(v)) for v in values],
        [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in values],
    )


def _groups(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    """Rows by key, keys in order of first appearance: layers stay in order of execution."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _positions(rows: Iterable[Row], column: str) -> dict[str, int]:
    """Where on an axis each layer named in the column stands."""
    return {name: i for i, name in enumerate(dict.fromkeys(row[column] for row in rows))}


def _run(row: Row) -> Run:
    ratio: float | None = row["noise_ratio"]
    return str(row["checkpoint"]) if ratio is None else ratio


def _same_run(row: Row) -> bool:
    """Whether the reference comes from the run of the checkpoint; unknown runs differ."""
    ratio, reference_ratio = row["noise_ratio"], row.get("reference_noise_ratio")
    same_seed = bool(row.get("seed") == row.get("reference_seed"))
    return ratio is not None and ratio == reference_ratio and same_seed


def _several_reference_layers(rows: Rows) -> bool:
    pairs = {(r["checkpoint"], r["reference"], r["layer"], r["reference_layer"]) for r in rows}
    return len(pairs) > len({pair[:3] for pair in pairs})


def _columns(rows: Rows) -> set[str]:
    """The columns that every row has."""
    return set.intersection(*map(set, rows)) if rows else set()


def _check(kind: Kind, rows: Rows) -> None:
    """Raise MemtoolError for a missing column, or for a condition that changes between rows."""
    columns = _columns(rows)
    if missing := [name for name in COLUMNS[kind] if name not in columns]:
        raise MemtoolError(
            f"{kind}: the table has no column {', '.join(missing)} "
            f"(it has {', '.join(sorted(columns)) or 'no rows'})"
        )
    for name in CONDITIONS[kind]:
        # A clean run may name its kind of noise or not: it has none.
        noisy = [row for row in rows if name != "noise_kind" or row.get("noise_ratio") != 0]
        values = sorted({str(row[name]) for row in noisy if row.get(name) is not None})
        if len(values) > 1:
            raise MemtoolError(
                f"{kind}: the rows differ in {name} ({', '.join(values)}), and a figure shows one "
                "of them; make a table for each"
            )


def _usable(rows: Rows, column: str) -> Rows:
    """The rows that have a value in the column; MemtoolError if there are none."""
    usable = [row for row in rows if row[column] is not None]
    if not usable:
        raise MemtoolError(f"no row has a value in the column {column}: there is nothing to draw")
    return usable


def _require_epoch(rows: Rows) -> None:
    for row in rows:
        if row["epoch"] is None:
            raise MemtoolError(
                f"{row['checkpoint']}: its epoch is unknown, so it has no place on the epoch axis; "
                "leave its rows out of the table"
            )


# ---------------------------------------------------------------- panels, axes, legend


def _grid(titles: Sequence[str], columns: int, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per title, as wide as a column of text or as the page."""
    columns = min(columns, len(titles))
    lines = math.ceil(len(titles) / columns)
    width = (COLUMN_WIDTH if columns == 1 else PAGE_WIDTH) / columns
    size = 8 if columns <= 4 else 6.5  # points; a letter is about 0.62 as wide
    titles = [_wrap(title, int(72 * width / (0.62 * size))) for title in titles]
    height = 0.2 + 0.7 * width + 0.12 * max(title.count("\n") + 1 for title in titles)
    figure = Figure(figsize=(columns * width, lines * height), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=sharey, squeeze=False).ravel()
    for axes in grid[len(titles) :]:
        axes.remove()
    panels = list(grid[: len(titles)])
    for i, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        axes.set_title(title, fontsize=size)
        axes.tick_params(labelbottom=i + columns >= len(titles))  # nothing but paper below
    return figure, panels


def _curves(
    axes: Axes, rows: Rows, x: str, y: str, styles: Mapping[Run, Style], **line: Any
) -> None:
    """Column y against column x, one curve per run: the mean, and a band for the spread."""
    groups = _groups(rows, _run)
    for run, style in styles.items():
        curve = _curve(groups.get(run, ()), x, y)
        if not curve.x:
            continue
        axes.plot(curve.x, curve.mean, **style, **line)
        if any(curve.spread):
            low, high = np.subtract(curve.mean, curve.spread), np.add(curve.mean, curve.spread)
            axes.fill_between(curve.x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _run_styles(rows: Rows) -> dict[Run, Style]:
    """A style per run: ratios in ascending order, then the checkpoints without one."""
    runs = sorted(_groups(rows, _run), key=lambda run: (isinstance(run, str), run))
    labels = [_short(run) if isinstance(run, str) else f"{100 * run:g}" for run in runs]
    return _styles(runs, labels, NOISE_COLORS)


def _styles(keys: Sequence[Key], labels: Sequence[str], colors: str) -> dict[Key, Style]:
    """A marker and a colour for each key, evenly spaced so that neighbours can be told apart."""
    shades = matplotlib.colormaps[colors](np.linspace(0, LIGHTEST, len(keys)))
    return {
        key: {"color": tuple(shade), "marker": MARKERS[i % len(MARKERS)], "label": label}
        for i, (key, shade, label) in enumerate(zip(keys, shades, labels, strict=True))
    }


def _label(figure: Figure, x: str, y: str, styles: Sequence[Style], legend_title: str) -> None:
    """Name the axes that all panels share, and add the legend in a strip of its own on top."""
    handles = [Line2D([], [], **style) for style in styles]
    widths = [0.4 + 0.055 * len(style["label"]) for style in styles]  # inches: handle, letters
    width = figure.get_figwidth()
    columns = len(styles) if sum(widths) <= width else max(1, int(width / max(widths)))
    panels, strip = figure.get_figheight(), 0.2 + 0.16 * math.ceil(len(styles) / columns)
    figure.set_figheight(panels + strip)
    figure.legend(handles=handles, title=legend_title, loc="outside upper center", ncols=columns)
    if len(figure.axes) == 1:
        figure.axes[0].set(xlabel=x, ylabel=y)
    else:
        figure.supxlabel(x)
        figure.supylabel(y, y=(0.5 * panels + 0.1) / (panels + strip))  # amid the panels


def _legend_title(runs: Iterable[Run]) -> str:
    titles = ["checkpoint" if isinstance(run, str) else NOISE_RATIO for run in runs]
    return " or ".join(dict.fromkeys(titles))


def _whole_numbers() -> MaxNLocator:
    """A few round epochs as ticks."""
    return MaxNLocator(5, integer=True, steps=[1, 2, 5, 10])


def _unit_interval(axes: Axes) -> None:
    """[0, 1] with room for the lines on its ends, and for unbiased CKA, which may fall below 0."""
    axes.set_ylim(min(-0.02, axes.get_ylim()[0]), 1.02)
    axes.set_yticks([0, 0.5, 1])


def _layer_ticks(axis: Axis, layers: Sequence[str], length: float) -> None:
    """Names of layers on an axis of `length` inches, 5 to 7 points high, thinned out if need be."""
    pitch = 72 * length / len(layers)  # points from one layer to the next
    every = math.ceil(5.5 / pitch)
    shown = range(0, len(layers), every)
    axis.set_ticks(shown, [layers[i] for i in shown], fontsize=min(7, max(5, pitch / 1.2)))


def _names_length(rows: Rows) -> float:
    """Inches that the names of layers take at about 5 points."""
    return 0.034 * max(len(row[end]) for row in rows for end in ("layer", "reference_layer"))


def _wrap(name: str, width: int) -> str:
    """The name on lines of at most `width` letters, broken after dots where that is possible."""
    spaced = name.replace(".", ". ")  # textwrap breaks at spaces only
    return textwrap.fill(spaced, width).replace(". ", ".")


def _short(checkpoint: str) -> str:
    """A file name that fits an axis label: its end tells runs and epochs apart."""
    name = checkpoint.removesuffix(".safetensors")
    return name if len(name) <= 30 else f"…{name[-29:]}"


def _percent(ratios: Iterable[float]) -> list[float]:
    return [100 * ratio for ratio in ratios]
