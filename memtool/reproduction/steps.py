"""A recipe as steps, each a memtool command that makes files.

What a step needs and makes is all that `make`, or the runner, has to know. Whatever else the
command writes is there by the time its first file is.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memtool import specs
from memtool.models.spec import code_file
from memtool.reproduction.recipes import Recipe, told
from memtool.reproduction.rules import CEILING, CKA, FIGURES, RUN_RULES, SUPPLEMENT, TABLES, Rule

ROOT = "$(DIR)"
NAMES = re.compile(r"\$(?:\((\w+)\)|([*<@^]))")

Names = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Step:
    """`memtool WORDS`, which makes the files `outputs` from `inputs`, and `leaves` others, given by
    globs, all below `root`; a word that is a path is below it, too."""

    name: str
    words: tuple[str | Path, ...]
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    root: Path = Path()
    leaves: tuple[Path, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """What memtool is to be called with."""
        return [str(self.root / word) if isinstance(word, Path) else word for word in self.words]

    @property
    def command(self) -> str:
        """The step as a line for the shell.

        >>> step = Step("labels", ("make-noisy", "a b", "-o", Path("x")), (), (), Path("out"))
        >>> step.command, step.recorded
        ("memtool make-noisy 'a b' -o out/x", "memtool make-noisy 'a b' -o x")
        """
        return f"memtool {shlex.join(self.arguments)}"

    @property
    def recorded(self) -> str:
        """The same with paths relative to `root`, wherever that is."""
        return f"memtool {shlex.join(map(str, self.words))}"

    @property
    def key(self) -> str:
        """The first file that it makes, below `root`, by which a record knows it."""
        return str(self.outputs[0])

    def is_stale(self, known: Mapping[str, str]) -> bool:
        """Whether `known`, commands by the keys of steps, has another one for this step."""
        return known.get(self.key, self.recorded) != self.recorded

    def is_done(self, known: Mapping[str, str]) -> bool:
        """Whether all outputs exist, by the command of this step as far as is known, and none is
        older than an input, as make sees it."""
        inputs, outputs = (
            [self.root / path for path in paths] for paths in (self.inputs, self.outputs)
        )
        if self.is_stale(known) or not all(path.exists() for path in (*inputs, *outputs)):
            return False
        made = min(path.stat().st_mtime_ns for path in outputs)
        return all(path.stat().st_mtime_ns <= made for path in inputs)


def steps_for(recipe: Recipe, root: Path) -> list[Step]:
    """The steps that carry out the recipe, each after those it needs.

    Below `root` they make labels/, runs/, stitched/, tables/ and the figures.
    """
    steps = [step for seed in range(recipe.seeds) for step in _steps_of(recipe, seed, root)]
    tables = tables_of(recipe.ratios, recipe.seeds, recipe.supplemented).items()
    names = {kind: [f"{ROOT}/{path}" for path in paths] for kind, paths in tables}
    figures = [_step(rule, name=rule.kind, stem=ROOT, names=names, root=root) for rule in FIGURES]
    return [*steps, *figures]


def tables_of(
    ratios: Sequence[float], seeds: int, supplemented: Sequence[float]
) -> dict[str, list[Path]]:
    """The tables of all runs by their kinds, below the folder of the reproduction; those of CKA of
    the second clean runs are the `ceiling`. Noise ratios are in percent."""
    runs = {
        "RUNS": [f"r{ratio:g}-s{seed}" for seed in range(seeds) for ratio in ratios],
        "SUPPLEMENTS": [f"r{ratio:g}-s{seed}" for seed in range(seeds) for ratio in supplemented],
        "CEILINGS": [f"ceiling-s{seed}" for seed in range(seeds)],
    }
    return {
        kind: [Path("tables", f"{table.name}-{run}.csv") for run in runs[table.runs]]
        for kind, table in TABLES.items()
    }


def pending(steps: Sequence[Step], known: Mapping[str, str]) -> Iterator[Step]:
    """The steps that are not done, and those that need what these make."""
    remade: set[Path] = set()
    for step in steps:
        if not step.is_done(known) or remade & {*step.inputs}:
            remade |= {*step.outputs}
            yield step


def variables(recipe: Recipe) -> dict[str, str]:
    """The recipe's choices by the names that they have in rules."""
    return {
        "DATA": recipe.data,
        "MODEL": recipe.model,
        "RATIOS": told(recipe.ratios),
        "SUPPLEMENT": told(recipe.supplemented),
        "SEEDS": str(recipe.seeds),
        "EPOCHS": str(recipe.epochs),
        "SAVED": " ".join(f"{epoch:04d}" for epoch in recipe.saved),
        "LAYERS": recipe.layers,
        "CUTS": recipe.cuts,
        "TRAIN": recipe.train,
        "CKA": recipe.cka,
        "SAMPLES": str(recipe.samples or ""),
        "STITCH": recipe.stitch,
    }


def _steps_of(recipe: Recipe, seed: int, root: Path) -> Iterator[Step]:
    """The steps of the runs of one seed: those of the clean one and of the ceiling first, then of
    the runs whose stitched models are compared, which take longest and are not to come last."""
    for ratio in sorted(recipe.ratios, key=lambda r: (r != 0, r not in recipe.supplemented)):
        run = f"r{ratio:g}-s{seed}"
        names = {**_names(recipe, run, seed), "ratio": f"{ratio:g}"}
        for rule in RUN_RULES:
            if rule is SUPPLEMENT and ratio not in recipe.supplemented:
                continue
            yield _step(rule, name=f"{rule.kind} {run}", stem=run, names=names, root=root)
        if not ratio:
            ceiling = f"ceiling-s{seed}"
            names = _names(recipe, ceiling, seed)
            for rule, stem in ((CEILING, str(seed)), (CKA, ceiling)):
                yield _step(rule, name=f"{rule.kind} {ceiling}", stem=stem, names=names, root=root)


def _names(recipe: Recipe, run: str, seed: int) -> dict[str, str | list[str]]:
    """What the names in rules stand for: options, and the files of a run, are several words."""
    values = variables(recipe)
    options = {name: shlex.split(values[name]) for name in ("TRAIN", "CKA", "STITCH")}
    # Code runs when it is typed, as the model of a reproduction was.
    samples = ["--samples", values["SAMPLES"]] if values["SAMPLES"] else []
    trust = ["--trust"] if code_file(specs.split(recipe.model, "model")[0]) else []
    saved = [f"{ROOT}/runs/{run}/epoch-{n}.safetensors" for n in values["SAVED"].split()]
    clean = f"{ROOT}/runs/r0-s{seed}.safetensors"
    names: dict[str, str | list[str]] = {**values, **options, "samples": samples, "trust": trust}
    return {**names, "seed": str(seed), "before": values["SAVED"], "clean": clean, "saved": saved}


def _step(rule: Rule, name: str, stem: str, names: Names, root: Path) -> Step:
    """The step of a rule for what % stands for."""
    makes = [text.replace("%", stem) for text in rule.makes]
    needs = [word for text in rule.needs for word in _expanded(text.replace("%", stem), names)]
    its_own: Names = {"*": stem, "@": makes[0], "^": needs, "<": needs[0] if needs else ""}
    words = [
        word for text in shlex.split(rule.command) for word in _expanded(text, {**names, **its_own})
    ]
    return Step(
        name=name,
        words=tuple(map(_word, words)),
        inputs=tuple(map(_below, dict.fromkeys(needs))),
        outputs=tuple(map(_below, makes)),
        root=root,
        leaves=tuple(_below(glob.replace("%", stem)) for glob in rule.leaves),
    )


def _expanded(text: str, names: Names) -> Sequence[str]:
    """The words that a word of a rule stands for."""
    found = NAMES.fullmatch(text)
    if found and not isinstance(value := names.get(found[1] or found[2], text), str):
        return value
    return [NAMES.sub(lambda found: str(names.get(found[1] or found[2], found[0])), text)]


def _word(text: str) -> str | Path:
    return _below(text) if text.startswith(f"{ROOT}/") else text


def _below(text: str) -> Path:
    return Path(text.removeprefix(f"{ROOT}/"))
