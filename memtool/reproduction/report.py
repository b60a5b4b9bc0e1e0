"""A reproduction as one page of HTML, to read and to mail: what was found, seen, set and run."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from memtool import MemtoolError, __version__, figures, tables
from memtool.errors import shortened, some
from memtool.files import replacing
from memtool.reproduction.exhibits import EXHIBITS, Exhibit
from memtool.reproduction.findings import FAILS, HOLDS, UNDECIDED
from memtool.reproduction.markup import Markup, element, inline, joined
from memtool.reproduction.page import page
from memtool.reproduction.recipes import Recipe
from memtool.reproduction.record import commands_of
from memtool.reproduction.results import Results, expected_tables, is_number
from memtool.reproduction.rules import TABLES
from memtool.reproduction.steps import Step, steps_for
from memtool.tables import FindingRow, Row, StepRow
from memtool.tensors import read_metadata

Rows = Sequence[Row]
Map = Callable[..., Iterable[Any]]
PAPER = (
    "Gupta, Saha, Rai: Understanding Memorization using Representation Similarity Analysis and "
    "Model Stitching, UniReps 2024"
)
WIDE = 5  # inches; a wider figure would be too small on a phone, and scrolls there
MARKS = {HOLDS: ("holds", "✓"), FAILS: ("fails", "✗"), UNDECIDED: ("undecided", "?")}


def write_report(results: Results, each: Map = map) -> Path:
    """Write `report.html` into the folder of a reproduction; returns its path. `each` draws the
    figures, as `map` does: in other processes, maybe.

    Equal tables and records give equal bytes. Raises MemtoolError if the record of the steps cannot
    be read, or the page not be written.
    """
    path = results.folder / "report.html"
    text = report(results, each)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def report(results: Results, each: Map = map) -> str:
    """The page. What is not in the folder is left out, and the page says so."""
    folder, choices, found = results.folder, results.choices, results.rows
    what = str(choices.get("study") or _values(found["training"], "data") or "a data set")
    steps, step_rows = _steps_of(choices), _step_rows(folder / "steps.csv")
    scale = joined(_scale(folder, found), *_unfinished(folder, choices, steps, step_rows))
    sections = {
        "scale": ("What was run, and at what scale", scale),
        "findings": ("Findings", _findings(results.findings)),
        "figures": ("Figures", _figures(found, each)),
        "settings": ("Settings and versions", _settings(folder, choices)),
        "steps": ("Commands, time and memory", _steps(steps, step_rows)),
    }
    end = joined(
        element("p", f"The paper: {PAPER}.", class_="quiet"),
        element("p", f"Made by memtool {__version__} with memtool report.", class_="quiet"),
    )
    return page(f"Where memorization lives: {what}", _summary(results.findings), sections, end)


def _summary(findings: Sequence[FindingRow]) -> Markup:
    counts = {name: [f["verdict"] for f in findings].count(name) for name in MARKS}
    return element(
        "p",
        f"Of the {len(findings)} claims that follow from the paper, {counts[HOLDS]} hold here, "
        f"{counts[FAILS]} do not; undecided: {counts[UNDECIDED]}.",
    )


def _scale(folder: Path, found: Mapping[str, Rows]) -> Markup:
    """What was measured, by what the tables and a checkpoint say."""
    training, cka, stitching = found["training"], found["cka"], found["stitching"]
    every = [*training, *cka, *stitching]
    layers = list(dict.fromkeys(row["layer"] for row in cka if row.get("layer") is not None))
    cuts = list(dict.fromkeys(row["front_layer"] for row in stitching if row.get("front_layer")))
    epochs = [row["epoch"] for row in training if row["epoch"] is not None]
    facts = {
        "Data set": _values(every, "data"),
        "Its images": _images(folder),
        "Networks": _values(training, "model"),
        "Noise ratios r": _values(every, "noise_ratio", lambda r: f"{100 * r:g}%"),
        "Seeds": _values(training or cka, "seed"),
        "Epochs": str(max(epochs, default="")),
        "Test images compared": _values([*cka, *stitching], "n"),
        "Layers compared": _counted(layers),
        "Cuts": _counted(cuts),
    }
    told = {name: value or "unknown" for name, value in facts.items()}
    return joined(
        _pairs(told),
        element(
            "p",
            "The findings are about this scale. The paper trains ResNet-18 on the 50,000 images "
            "of CIFAR-10 and a convolutional network on SVHN, at nine noise ratios.",
        ),
    )


def _unfinished(
    folder: Path, choices: Mapping[str, Any], steps: Sequence[Step], step_rows: Rows
) -> list[Markup]:
    """A sentence on the tables of the chosen runs that are not there, and on the `steps` that were
    run by other commands, as `step_rows` tells."""
    expected = expected_tables(choices) or []
    missing = [path.name for path in expected if not (folder / path).exists()]
    known = commands_of(step_rows, folder)
    stale = [step.name for step in steps if step.is_stale(known)]
    told = []
    if missing:
        told += [f"missing tables ({len(missing)} of {len(expected)}) are {some(missing)}"]
    if stale:
        told += [f"made by earlier options ({len(stale)} of {len(steps)}) are {some(stale)}"]
    return [element("p", element("strong", f"Unfinished: {'; '.join(told)}."))] if told else []


def _steps_of(choices: Mapping[str, Any]) -> list[Step]:
    """The steps of the recipe that was chosen; none if a choice is missing."""
    try:
        return steps_for(Recipe.from_json(choices), Path())
    except Exception:  # whatever stands there in place of a choice
        return []


def _images(folder: Path) -> str:
    """How many images there are, by a checkpoint; empty if there is none."""
    for path in sorted((folder / "runs").glob("*.safetensors"))[:1]:
        with suppress(MemtoolError):
            data = read_metadata(path, "checkpoint")["data"]
            return f"{data.get('train')} for training, {data.get('test')} for testing"
    return ""


def _values(rows: Rows, column: str, told: Callable[[Any], str] = str) -> str:
    """The different values of a column, sorted."""
    found = {row[column] for row in rows if row.get(column) is not None}
    return ", ".join(told(value) for value in sorted(found, key=lambda v: (str(type(v)), v)))


def _counted(names: Sequence[str]) -> str:
    shown = names if len(names) <= 12 else [*names[:6], "...", *names[-5:]]
    return f"{len(names)}: {', '.join(shown)}" if names else ""


def _pairs(values: Mapping[str, str]) -> Markup:
    parts = [(element("dt", key), element("dd", value)) for key, value in values.items()]
    return element("dl", *(part for pair in parts for part in pair))


def _findings(findings: Sequence[FindingRow]) -> Markup:
    rows = [
        element(
            "tr",
            element(
                "th",
                finding["claim"][:1].upper() + finding["claim"][1:],
                element("div", finding["measure"], class_="quiet"),
                scope="row",
            ),
            _verdict(finding["verdict"]),
            _cell("Why", finding["why"]),
        )
        for finding in findings
    ]
    return joined(
        element(
            "p",
            "Each claim is decided by one number. First and last third are those of the depth, and "
            "the middle cut is at half of it; convergence is the CKA to the own final model, "
            "averaged over the epochs; Spearman is the rank correlation. A claim holds, or does "
            "not, only if the whole interval over the seeds is beyond a bound; with one seed there "
            "is no interval, and the number alone decides.",
        ),
        _table("cards", ("Claim", "Verdict", "Why"), rows),
    )


def _table(kind: str, titles: Iterable[str], rows: Iterable[Markup]) -> Markup:
    head = element("tr", *(element("th", title, scope="col") for title in titles))
    return element("table", element("thead", head), element("tbody", *rows), class_=kind)


def _cell(label: str, text: str, kind: str = "") -> Markup:
    named = {"class_": kind} if kind else {}
    return element("td", text, data_label=label, **named)


def _verdict(verdict: str) -> Markup:
    kind, mark = MARKS[verdict]
    return element("td", f"{mark} {verdict}", class_=f"verdict {kind}")


def _figures(found: Mapping[str, Rows], each: Map) -> Markup:
    rows = [[row for kind in one.plot.tables for row in found[kind]] for one in EXHIBITS]
    return joined(*each(_figure, range(len(EXHIBITS)), EXHIBITS, rows))


def _figure(number: int, exhibit: Exhibit, rows: Rows) -> Markup:
    """A figure drawn anew from its rows, or why there is none."""
    drawing: Markup
    plot = exhibit.plot
    source = " and ".join(f"tables/{TABLES[kind].glob}" for kind in plot.tables)
    try:
        if not rows:
            raise MemtoolError(f"there is no {source}")
        figure = figures.draw(plot.kind, rows, figures.as_options(**plot.options))
        width = figure.get_figwidth()
        how = {"class_": "drawing wide", "tabindex": "0"}  # with the keyboard, too, it scrolls
        if width < WIDE:
            how = {"class_": "drawing", "style": f"max-width: {1.4 * width:.3g}in"}
        title = f"{exhibit.title}. {exhibit.reading}"
        drawing = element("div", inline(figure, f"figure{number}", title), **how)
    except MemtoolError as reason:
        drawing = element("p", f"Not drawn: {reason}.", class_="quiet")
    caption = element(
        "figcaption",
        element("strong", "How to read it. "),
        exhibit.reading,
        element("span", f" Numbers: {source}.", class_="quiet"),
    )
    return joined(element("h3", exhibit.title), element("figure", drawing, caption))


def _settings(folder: Path, choices: Mapping[str, Any]) -> Markup:
    if not choices:
        return element("p", f"Not recorded: {folder.resolve().name} has no reproduction.json.")
    return _pairs({key: _setting(value) for key, value in _flat(choices)})


def _flat(choices: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The settings by their names; one within another has both names, with a dot."""
    found: list[tuple[str, Any]] = []
    for key, value in sorted(choices.items()):
        parts = sorted(value.items()) if isinstance(value, dict) else None
        found += [(key, value)] if parts is None else [(f"{key}.{k}", v) for k, v in parts]
    return found


def _setting(value: Any) -> str:
    """
    >>> _setting([0, 37.5]), _setting(None), _setting(True)
    ('0, 37.5', 'none', 'true')
    """
    if isinstance(value, str):
        return shortened(value, 1000) or "none"
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        return shortened(", ".join(map(str, value)) or "none", 1000)
    return "none" if value is None else shortened(json.dumps(value), 1000)


def _step_rows(path: Path) -> Rows:
    """The steps that were run, by their record."""
    return tables.read(path, StepRow) if path.is_file() else []


def _steps(steps: Sequence[Step], step_rows: Rows) -> Markup:
    """Those of `steps` that were run; all in `step_rows`, if it is not known which there are."""
    keys = {step.key for step in steps}
    rows = [row for row in step_rows if not keys or row.get("output") in keys]
    if not rows:
        return element("p", "Not recorded: there is no steps.csv.")
    body = [
        element(
            "tr",
            element(
                "td",
                element("div", str(row.get("step") or "")),
                element("code", str(row.get("command") or "")),
                *_warnings(row),
            ),
            _cell("Time", _seconds(row.get("seconds")), "number"),
            _cell("Memory", _memory(row.get("memory")), "number"),
        )
        for row in rows
    ]
    return joined(
        element("p", _total(rows)), _table("cards", ("Step and command", "Time", "Memory"), body)
    )


def _warnings(row: Row) -> list[Markup]:
    told = row.get("warnings")
    return [element("div", f"Warning: {told}")] if told else []


def _total(rows: Rows) -> str:
    seconds = [row["seconds"] for row in rows if is_number(row.get("seconds"))]
    memory = [row["memory"] for row in rows if is_number(row.get("memory"))]
    if not seconds:
        return f"{len(rows)} steps, each a command; make ran them, and measures no times."
    measured = "" if len(seconds) == len(rows) else f"of {len(seconds)} of them "
    return (
        f"{len(rows)} steps, each a command; {measured}{_seconds(sum(seconds))} if one ran after "
        f"the other, and at most {_memory(max(memory, default=None))} of memory each."
    )


def _seconds(value: Any) -> str:
    """
    >>> _seconds(4.25), _seconds(61), _seconds(7260)
    ('4.2 s', '1 min 1 s', '2 h 1 min')
    """
    if not is_number(value):
        return "–"
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _memory(value: Any) -> str:
    """
    >>> _memory(412_300_000), _memory(2_500_000_000)
    ('412 MB', '2.5 GB')
    """
    if not is_number(value):
        return "–"
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
