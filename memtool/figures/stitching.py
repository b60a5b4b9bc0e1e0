"""Figure 2: test accuracy of stitched models against the noise ratio or, for a few, the cut."""

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memtool import MemtoolError
from memtool.errors import shortened
from memtool.figures.colors import Style
from memtool.figures.curves import (
    BAND,
    Curve,
    curve,
    cut_name,
    draw_curve,
    draw_error_bars,
    one_per_seed,
    record,
    spread_legend,
)
from memtool.figures.letters import drawable
from memtool.figures.options import Options
from memtool.figures.rows import Needs, Rows, groups, in_order, listed, usable
from memtool.figures.selection import of_layers, of_ratios
from memtool.figures.style import (
    CUT_COLORS,
    NOISE_RATIO,
    finish,
    names_length,
    panel_grid,
    styles_of,
)
from memtool.tables import Row, StitchingRow

logger = logging.getLogger("memtool")

NEEDS: Needs = Needs(
    StitchingRow,
    columns=(
        *("direction", "test_accuracy"),
        *("front", "front_layer", "front_noise_ratio", "front_accuracy"),
        *("back", "back_layer", "back_noise_ratio", "back_accuracy"),
    ),
    conditions=(
        *("data", "batch_norm", "init", "optimizer", "epochs", "learning_rate", "batch_size"),
    ),
    optional=(
        *("epoch", "control_accuracy", "connector", "n", "seed"),
        *("front_model", "front_epoch", "front_noise_kind", "front_noise_seed", "front_seed"),
        *("back_model", "back_epoch", "back_noise_kind", "back_noise_seed", "back_seed"),
    ),
)

TITLES = {  # of the directions
    "forward": "noisy front, clean back",
    "reverse": "clean front, noisy back",
    "control": "noisy front, own back (control)",
}
NOT_CLEAN = {"forward": "front of r, other back", "reverse": "other front, back of r"}
CLEAN: Style = {"color": "black", "linestyle": ":", "zorder": 3, "label": "clean model"}
NOISY: Style = {"color": "#00B4D8", "linestyle": "--", "zorder": 3, "label": "noisy model"}
OTHER_END = {"front": "back", "back": "front"}
NO_GAIN: Style = {**CLEAN, "label": "as the control"}
# Of the directions where each is a curve: blue, vermilion and grey, which the colour-blind tell
# apart (Okabe and Ito 2008).
DIRECTIONS: dict[str, Style] = {
    "forward": {"color": "#0072B2", "marker": "o"},
    "reverse": {"color": "#D55E00", "marker": "s"},
    "control": {"color": "0.5", "marker": "^"},
}
# What is on record of an end; where its seed is known, this tells networks apart.
KNOWN = ("model", "epoch", "noise_ratio", "noise_kind", "noise_seed", "seed", "accuracy")
LINES = ("-", "--", "-.", ":")  # of one direction, by the noise ratio of the other end
FEW_RATIOS = 2  # with no more, the cut is on the x axis


def choose(rows: Rows, options: Options) -> list[Row]:
    """The rows of the cuts and noise ratios that are asked for, with a column `k`: the number of
    the cut among all in the table, from 1 on.

    Raises MemtoolError if a direction is not known.
    """
    for row in rows:
        if row["direction"] not in TITLES:
            raise MemtoolError(
                f"no direction {shortened(repr(row['direction']))}; there are {', '.join(TITLES)}"
            )
    rows = in_order(rows, lambda row: (row["front"], row["back"], row["direction"]), cut_name)
    numbers = {cut: k for k, cut in enumerate(groups(rows, cut_name), 1)}
    rows = [{**row, "k": numbers[cut_name(row)]} for row in rows]
    rows = of_layers(rows, options.layers, "front_layer")
    return of_ratios(rows, options.ratios, _ratio)


def draw(rows: Rows, options: Options) -> Figure:
    """Figure 2: a panel per direction, in which each cut has a curve over the noise ratios. Of one
    or two noise ratios, a panel each, in which each direction has a curve over the cuts.

    The black dotted line is the accuracy of the clean networks alone: those with noise ratio 0,
    whether they are fronts or backs. The cyan dashed line is that of the noisy networks alone. If
    the rows have several epochs of a stitching layer, the last one is drawn. `net_of_control` takes
    the test accuracy of its control from each row: a dotted line at 0 stands for a stitched model
    that is as accurate as that.

    Raises MemtoolError if the noise ratio of a noisy network is not known, or no row has a control
    to subtract.
    """
    latest = [row for row in rows if row["epoch"] is None or row["epochs"] in (None, row["epoch"])]
    if rows and not latest:
        raise MemtoolError(
            "no row is of the last epoch of its stitching layer (columns epoch, epochs), which is "
            "what is drawn"
        )
    rows = usable(latest, "test_accuracy")
    rows = _with_curves(_net_of_control(rows) if options.net_of_control else rows)
    ratios, cuts = (len({row[column] for row in rows}) for column in ("percent", "k"))
    over = _over_cuts if ratios <= min(FEW_RATIOS, cuts) else _over_ratios
    return over(rows, options)


def _over_ratios(rows: Rows, options: Options) -> Figure:
    directions = {name: group for name in TITLES if (group := _of_direction(rows, name))}
    names = list(dict.fromkeys(row["curve"] for row in rows))
    styles = styles_of(names, names, CUT_COLORS)
    titles = [_title(name, group) for name, group in directions.items()]
    figure, panels = panel_grid(titles, len(titles), options.width)
    for axes, group in zip(panels, directions.values(), strict=True):
        for name, of_curve in groups(group, lambda row: str(row["curve"])).items():
            accuracy = curve(of_curve, "percent", "test_accuracy")
            draw_error_bars(axes, accuracy, y=_measure(options), style=styles[name])
        if not options.net_of_control:
            alone = curve(_alone(group, _noisy_ends), "percent", "accuracy")
            draw_curve(axes, alone, y="test_accuracy", style=NOISY)
    lines = [*styles.values(), *_draw_levels(panels, rows, options)]
    finish(
        figure,
        x=NOISE_RATIO,
        y=_label(options),
        styles=lines,
        legend_title="cut",
        more=spread_legend(figure),
    )
    return figure


def _over_cuts(rows: Rows, options: Options) -> Figure:
    cuts = {row["k"]: str(cut_name(row)) for row in sorted(rows, key=lambda row: int(row["k"]))}
    places = {k: place for place, k in enumerate(cuts)}
    rows = [{**row, "place": places[row["k"]]} for row in rows]
    ratios, names = dict(sorted(groups(rows, _percent).items())), list(cuts.values())
    styles = _direction_styles(rows)
    figure, panels = panel_grid([f"r = {r:g} %" for r in ratios], len(ratios), options.width)
    for axes, group in zip(panels, ratios.values(), strict=True):
        for key, of_curve in groups(group, lambda row: (row["direction"], row["other"])).items():
            accuracy = curve(of_curve, "place", "test_accuracy")
            draw_error_bars(axes, accuracy, y=_measure(options), style=styles[key], names=names)
        if not options.net_of_control:
            alone = curve(_alone(group, _noisy_ends), "percent", "accuracy")
            _draw_level(axes, alone, style=NOISY, names=names)
    _name_cuts(figure, panels, cuts)
    lines = [*styles.values(), *_draw_levels(panels, rows, options, names)]
    finish(
        figure,
        x="cut k: the last layer of the front",
        y=_label(options),
        styles=lines,
        legend_title="",
        more=spread_legend(figure),
    )
    return figure


def _label(options: Options) -> str:
    return "test accuracy" + (" − control's" if options.net_of_control else "")


def _measure(options: Options) -> str:
    """What is drawn, in columns of the table."""
    return "test_accuracy" + (" - control_accuracy" if options.net_of_control else "")


def _net_of_control(rows: Rows) -> list[Row]:
    """The rows after subtracting the test accuracy of its control from each."""
    stitched = [row for row in rows if row["direction"] != "control"]
    net: list[Row] = [
        {**row, "test_accuracy": row["test_accuracy"] - row["control_accuracy"]}
        for row in stitched
        if row["control_accuracy"] is not None
    ]
    without = {str(cut_name(row)): None for row in stitched if row["control_accuracy"] is None}
    if net and without:
        logger.info(f"stitching: {listed(list(without))} left out where there is no control")
    if not net:
        raise MemtoolError(
            "no row has a control to subtract: stitch with --control, and keep the rows of the "
            "other directions"
        )
    return net


def _noisy_end(row: Row) -> str:
    """Which end of a stitched model comes from the noisy network."""
    return "back" if row["direction"] == "reverse" else "front"


def _noisy_ends(row: Row) -> list[str]:
    return [_noisy_end(row)]


def _clean_ends(row: Row) -> list[str]:
    return [end for end in OTHER_END if row[f"{end}_noise_ratio"] == 0]


def _ratio(row: Row) -> float | None:
    """The noise ratio of the end that is on the axis."""
    ratio: float | None = row[f"{_noisy_end(row)}_noise_ratio"]
    return ratio


def _percent(row: Row) -> float:
    """The same in percent; raises MemtoolError if it is unknown."""
    if (ratio := _ratio(row)) is None:
        end = _noisy_end(row)
        raise MemtoolError(
            f"{row[end]}: its noise ratio is unknown, so it has no place on the axis of noise "
            f"ratios; fill in the column {end}_noise_ratio or leave its rows out of the table"
        )
    return round(100 * ratio, 7)  # programs write .3 and .30000000000000004


def _other_ratio(row: Row) -> float | None:
    """The noise ratio of the end that is not on the axis; None if unknown, and for a control."""
    if row["direction"] == "control":
        return None
    ratio: float | None = row[f"{OTHER_END[_noisy_end(row)]}_noise_ratio"]
    return ratio


def _with_curves(rows: Rows) -> list[Row]:
    """The rows with their noise ratio in `percent` and the names of their curves: in `other` that
    of the other end, where networks of several noise ratios give it, and in `curve` the cut, too.
    """
    several = len({_other_ratio(row) for row in rows if row["direction"] != "control"}) > 1

    def other(row: Row) -> str:
        ratio = _other_ratio(row)
        return f", other end {100 * ratio:g} %" if several and ratio is not None else ""

    return [
        {
            **row,
            "percent": _percent(row),
            "other": other(row),
            "curve": f"k = {row['k']} ({cut_name(row)}){other(row)}",
        }
        for row in rows
    ]


def _of_direction(rows: Rows, direction: str) -> list[Row]:
    return [row for row in rows if row["direction"] == direction]


def _title(direction: str, rows: Rows) -> str:
    """The title of a direction, which says clean only where all of that end are."""
    is_clean = direction == "control" or all(_other_ratio(row) == 0 for row in rows)
    return TITLES[direction] if is_clean else NOT_CLEAN[direction]


def _direction_styles(rows: Rows) -> dict[tuple[str, str], Style]:
    """A style for each direction and, if there are several, each noise ratio of the other end."""
    styles: dict[tuple[str, str], Style] = {}
    for direction, style in DIRECTIONS.items():
        group = _of_direction(rows, direction)
        for number, other in enumerate(groups(group, lambda row: str(row["other"]))):
            label = drawable(_title(direction, group) + other)
            line = LINES[number % len(LINES)]
            styles[direction, other] = {**style, "linestyle": line, "label": label}
    return styles


def _name_cuts(figure: Figure, panels: Sequence[Axes], cuts: Mapping[int, str]) -> None:
    """Number and name the cuts below the panels, upright and in more room if they are long."""
    room = 72 * figure.get_figwidth() / len(panels) / (len(cuts) + 1)  # points for each
    cuts = {k: drawable(name) for k, name in cuts.items()}
    is_long = max(map(len, cuts.values())) * 4.5 > room
    names = [f"{k}: {name}" if is_long else f"{k}\n{name}" for k, name in cuts.items()]
    if is_long:
        figure.set_figheight(figure.get_figheight() + names_length(names))
    for axes in panels:
        axes.set_xticks(range(len(cuts)), names, rotation=90 if is_long else 0)
        axes.set_xlim(-0.3, len(cuts) - 0.7)


def _draw_levels(
    panels: Sequence[Axes], rows: Rows, options: Options, names: Sequence[str] | None = None
) -> list[Style]:
    """Draw what is level in all panels: the accuracy of clean networks; net of the control, 0.

    Returns what the legend lists of this and of the noisy networks.
    """
    if options.net_of_control:
        for axes in panels:
            axes.axhline(0, **NO_GAIN)
        return [NO_GAIN]
    clean = curve(_alone(rows, _clean_ends), "percent", "accuracy")
    for axes in panels:
        _draw_level(axes, clean, style=CLEAN, names=names)
    return [*([CLEAN] if clean.x else []), *([NOISY] if _alone(rows, _noisy_ends) else [])]


def _draw_level(axes: Axes, level: Curve, style: Style, names: Sequence[str] | None) -> None:
    """Draw a curve of one point as a level line with a band; nothing if there is no point. It is
    recorded at each of the `names` on the x axis, or at its noise ratio."""
    for mean, spread in zip(level.mean, level.spread, strict=True):
        axes.axhline(mean, **style)
        if spread:
            axes.axhspan(mean - spread, mean + spread, color=style["color"], **BAND)
    if level.x and names:
        count = len(names)
        level = Curve(
            x=[*range(count)],
            mean=level.mean * count,
            spread=level.spread * count,
            n=level.n * count,
        )
    record(axes, level, y="test_accuracy", label=style["label"], names=names)


def _alone(rows: Rows, ends: Callable[[Row], Iterable[str]]) -> list[Row]:
    """The networks alone that are these `ends` of the rows: one row for each, with its noise ratio
    in `percent` and its `accuracy`. One may have a path in each table, if the folder was moved."""
    paths: dict[Hashable, str] = {}

    def path(row: Row, end: str) -> str:
        own: str = row[end]
        known = tuple(row[f"{end}_{column}"] for column in KNOWN)
        return own if row[f"{end}_seed"] is None else paths.setdefault(known, own)

    networks = [
        {
            "checkpoint": path(row, end),
            "percent": 100 * row[f"{end}_noise_ratio"],
            "accuracy": row[f"{end}_accuracy"],
            "seed": row["seed"],
            "own_seed": row[f"{end}_seed"],
            "noise_seed": row[f"{end}_noise_seed"],
        }
        for row in rows
        for end in ends(row)
        if row[f"{end}_accuracy"] is not None
    ]
    by_ratio = groups(networks, lambda row: float(row["percent"])).values()
    checked = [row for group in by_ratio for row in one_per_seed(group, "accuracy")]
    return list({(row["checkpoint"], row["accuracy"]): row for row in checked}.values())
