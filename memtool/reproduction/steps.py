"""A recipe as steps, and steps as a Makefile.

A step is one memtool command that makes one file: its name, inputs and output are all that make
needs to know. Whatever else the command writes is there by the time the output is.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memtool import MemtoolError
from memtool.reproduction.recipes import ENVIRONMENT, FIGURES, Recipe

# The paper's estimator, a few checkpoints at a time: steps that run at once then stay below 1 GB
# each.
EXACT = ("--estimator", "exact", "--memory", "48MiB")


@dataclass(frozen=True)
class Step:
    """`memtool ARGUMENTS`, which makes `output` from `inputs` and may write more before that."""

    name: str
    arguments: tuple[str, ...]
    inputs: tuple[Path, ...]
    output: Path

    def command(self, memtool: str = "memtool") -> str:
        """The step as a line for the shell; `memtool` is how memtool is called there.

        >>> Step("labels", ("make-noisy", "digits", "-o", "a b"), (), Path("a b")).command()
        "memtool make-noisy digits -o 'a b'"
        """
        return f"{memtool} {shlex.join(self.arguments)}"

    def is_done(self) -> bool:
        """Whether the output exists and is not older than any input, as make sees it."""
        if not self.output.exists() or not all(path.exists() for path in self.inputs):
            return False
        made = self.output.stat().st_mtime_ns
        return all(path.stat().st_mtime_ns <= made for path in self.inputs)


@dataclass(frozen=True)
class _Files:
    """Where the files of one run are: of one noise ratio, in percent, and one seed."""

    root: Path
    ratio: float
    seed: int

    @property
    def run(self) -> str:
        return f"r{self.ratio:g}-s{self.seed}"

    @property
    def labels(self) -> Path:
        return self.root / "labels" / f"{self.run}.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The final model, which training writes last, once its table is complete."""
        return self.root / "runs" / f"{self.run}.safetensors"

    def epoch(self, epoch: int) -> Path:
        return self.root / "runs" / self.run / f"epoch-{epoch:04d}.safetensors"

    def table(self, kind: str) -> Path:
        return self.root / "tables" / f"{kind}-{self.run}.csv"


def steps_for(recipe: Recipe, root: Path, seeds: int) -> list[Step]:
    """The steps that carry out `recipe` for seeds 0 to `seeds` - 1, each after those it needs.

    Below `root` they make labels/, runs/, tables/ and the figures.
    """
    runs = [_Files(root, ratio, seed) for seed in range(seeds) for ratio in recipe.ratios]
    return [
        *(step for files in runs for step in _run_steps(recipe, files)),
        *(step for kind in FIGURES for step in _figure_steps(kind, root, runs)),
    ]


def _run_steps(recipe: Recipe, files: _Files) -> Iterator[Step]:
    """The labels and the training of one run, and its comparison with the clean model."""
    ours, clean = files.checkpoint, _Files(files.root, 0, files.seed).checkpoint
    epochs = [files.epoch(epoch) for epoch in recipe.epochs]
    seed = ["--seed", files.seed]
    layers = ["--layers", recipe.layers]

    def step(kind: str, inputs: list[Path], output: Path, arguments: list[object]) -> Step:
        words = (*map(str, arguments), "-o", str(output))
        return Step(f"{kind} {files.run}", words, tuple(inputs), output)

    def table(kind: str, inputs: list[Path], arguments: list[object]) -> Step:
        return step(kind, inputs, files.table(kind), arguments)

    noise = ["make-noisy", recipe.data, "-r", f"{files.ratio:g}%", *seed]
    training = ["train", *shlex.split(recipe.train), "--labels", files.labels, *seed, "--resume"]
    stitching = ["stitch", ours, clean, "--at", recipe.cuts, "--both", "--control", *seed]
    yield step("labels", [], files.labels, noise)
    yield step("train", [files.labels], ours, [*training, "--table", files.table("training")])
    yield table("convergence", [ours], ["cka", *epochs, ours, *layers, *EXACT])
    yield table("divergence", [ours, clean], ["cka", *epochs, clean, *layers, *EXACT])
    yield table("stitching", [ours, clean], stitching)


def _figure_steps(kind: str, root: Path, runs: Sequence[_Files]) -> Iterator[Step]:
    """One figure of all runs, as a table and as pictures."""
    tables = [files.table(kind) for files in runs]
    # The table of a training is complete once the checkpoint is there.
    inputs = [files.checkpoint for files in runs] if kind == "training" else tables
    for suffix in ("csv", "pdf", "png"):
        figure = root / f"{FIGURES[kind]}.{suffix}"
        arguments = ("plot", kind, *map(str, tables), "-o", str(figure))
        yield Step(figure.name, arguments, tuple(inputs), figure)


def to_makefile(steps: Sequence[Step], last: Sequence[str]) -> str:
    """The steps as a Makefile for `make -j`; `last` are the arguments of memtool that print the
    findings once all steps are done.

    Raises MemtoolError for a path that make cannot take.
    """
    for step in steps:
        if set(str(step.output)) & set(" \t#$%:;=\\"):
            raise MemtoolError(f"{step.output}: make cannot take a path with such characters")
    goals = " ".join(str(step.output) for step in steps if step.arguments[0] == "plot")
    lines = [
        "# Made by memtool reproduce --makefile: the same steps, for make -j N.",
        "# Over several machines: make -j 8 MEMTOOL='srun ... memtool'",
        "MEMTOOL ?= memtool",
        *(f"export {name} = {value}" for name, value in ENVIRONMENT.items()),
        "",
        ".DELETE_ON_ERROR:",
        ".PHONY: all",
        f"all: {goals}",
        f"\t$(MEMTOOL) {shlex.join(last)}",
    ]
    for step in steps:
        lines += [
            "",
            f"{step.output}: {' '.join(map(str, step.inputs))}".rstrip(),
            f"\t{step.command('$(MEMTOOL)')}",
        ]
    return "\n".join(lines) + "\n"
