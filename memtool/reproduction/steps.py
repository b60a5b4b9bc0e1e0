"""The paper as a list of steps: run it, or print it as a Makefile.

A step is one memtool command that makes one file (its name, its inputs and its output are all
that make needs to know). What a command writes besides is there once the output is.
"""

import gc
import multiprocessing
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from memtool import MemtoolError
from memtool.reproduction.recipes import Study

RATIOS = (0, 5, 10, 15, 20, 25, 37.5, 50, 67.5)  # percent, the paper's
FIGURES = {
    "convergence": "figure1-convergence",
    "stitching": "figure2-stitching",
    "divergence": "figure3-divergence",
    "training": "training",
}


@dataclass(frozen=True)
class Recipe:
    """What a study does for every noise ratio and seed; texts are options as one types them."""

    data: str
    train: str  # options of memtool train
    epochs: tuple[int, ...]  # of the checkpoints that are compared
    layers: str  # of memtool cka --layers
    cuts: str  # of memtool stitch --at


RECIPES = {
    Study.digits: Recipe(
        data="digits",
        train="--model digits-cnn --save-every 1",
        epochs=tuple(range(1, 21)),
        layers="block?,fc",
        cuts="block?",
    ),
}

# One thread a step: these networks are too small for more, and the last digits of a sum depend on
# the number of threads, which must not depend on how many steps run at once.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}

# The paper's estimator; a few checkpoints at a time, so that steps side by side stay below 1 GB.
EXACT = ("--estimator", "exact", "--memory", "48MiB")

# What a step's process would otherwise import for itself; torch's optimizers import torch._dynamo.
PRELOAD = [
    *("torch", "torch._dynamo"),
    *("memtool.cli", "memtool.training.run", "memtool.similarity.compare"),
    *("memtool.stitching.sweep", "memtool.figures.drawing"),
]


@dataclass(frozen=True)
class Step:
    """`memtool ARGUMENTS`, which makes `output` from `inputs`; it may write more before that."""

    name: str
    arguments: tuple[str, ...]
    inputs: tuple[Path, ...]
    output: Path

    def command(self, memtool: str = "memtool") -> str:
        """The step as a line for the shell."""
        return f"{memtool} {shlex.join(self.arguments)}"

    def is_done(self) -> bool:
        """Whether the output is there and not older than an input, as make sees it."""
        if not self.output.exists() or not all(path.exists() for path in self.inputs):
            return False
        made = self.output.stat().st_mtime_ns
        return all(path.stat().st_mtime_ns <= made for path in self.inputs)


def steps(study: Study, root: Path, seeds: int) -> list[Step]:
    """The steps that reproduce the paper for seeds 0 ... `seeds` - 1, each after those it needs.

    `root` gets labels/, runs/, tables/ and the figures.
    """
    recipe = RECIPES[study]
    runs = [(ratio, seed) for seed in range(seeds) for ratio in RATIOS]
    result = [step for ratio, seed in runs for step in _run_steps(recipe, root, ratio, seed)]
    for kind, stem in FIGURES.items():
        tables = [root / "tables" / f"{kind}-{_name(*run)}.csv" for run in runs]
        # A run's checkpoint is written last, once its training table is complete.
        trained = [root / "runs" / f"{_name(*run)}.safetensors" for run in runs]
        for suffix in ("csv", "pdf", "png"):
            figure = root / f"{stem}.{suffix}"
            arguments = ("plot", kind, *map(str, tables), "-o", str(figure))
            inputs = trained if kind == "training" else tables
            result.append(Step(figure.name, arguments, tuple(inputs), figure))
    return result


def _name(ratio: float, seed: int) -> str:
    return f"r{ratio:g}-s{seed}"


def _run_steps(recipe: Recipe, root: Path, ratio: float, seed: int) -> Iterator[Step]:
    """Labels, training and what is measured of one run."""
    run = _name(ratio, seed)
    labels = root / "labels" / f"{run}.safetensors"
    ours = root / "runs" / f"{run}.safetensors"
    clean = root / "runs" / f"{_name(0, seed)}.safetensors"
    saved = [root / "runs" / run / f"epoch-{epoch:04d}.safetensors" for epoch in recipe.epochs]

    def table(kind: str) -> Path:
        return root / "tables" / f"{kind}-{run}.csv"

    def step(kind: str, inputs: Sequence[Path], output: Path, *arguments: object) -> Step:
        words = [str(argument) for argument in arguments]
        return Step(f"{kind} {run}", (*words, "-o", str(output)), tuple(inputs), output)

    yield step(
        *("labels", [], labels),
        *("make-noisy", recipe.data, "-r", f"{ratio:g}%", "--seed", seed),
    )
    yield step(
        *("train", [labels], ours),
        *("train", *shlex.split(recipe.train), "--labels", labels, "--seed", seed),
        *("--resume", "--table", table("training")),
    )
    yield step(
        *("convergence", [ours], table("convergence")),
        *("cka", *saved, ours, "--layers", recipe.layers, *EXACT),
    )
    yield step(
        *("divergence", [ours, clean], table("divergence")),
        *("cka", *saved, clean, "--layers", recipe.layers, *EXACT),
    )
    yield step(
        *("stitching", [ours, clean], table("stitching")),
        *("stitch", ours, clean, "--at", recipe.cuts, "--both", "--control", "--seed", seed),
    )


def makefile(steps: Sequence[Step], again: Sequence[str]) -> str:
    """The same steps as a Makefile for `make -j`; `again` are the arguments of the command that
    tells the findings.

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
        f"\t$(MEMTOOL) {shlex.join(again)}",
    ]
    for step in steps:
        lines += [
            "",
            f"{step.output}: {' '.join(map(str, step.inputs))}".rstrip(),
            f"\t{step.command('$(MEMTOOL)')}",
        ]
    return "\n".join(lines) + "\n"


WARNING = "memtool: warning: "


@dataclass(frozen=True)
class Progress:
    """What happened to a step: it was found done, or it ran for so many seconds and warned."""

    step: Step
    seconds: float | None = None
    warnings: tuple[str, ...] = ()


def run(
    steps: Sequence[Step], jobs: int, command: Callable[[list[str]], None]
) -> Iterator[Progress]:
    """Run the steps that are not done, `jobs` at once, each after those it needs; yield each as it
    ends. `command` runs memtool with the given arguments.

    Each step has a process of its own, forked from one that has imported torch already. Raises
    MemtoolError for a step that failed, with its last words. However the iteration ends, no
    process is left and no partial file.
    """
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    waiting = list(steps)
    unmade = {step.output for step in steps}
    running: dict[Any, tuple[Step, BaseProcess, float]] = {}
    with tempfile.TemporaryDirectory(prefix="memtool-") as logs:
        try:
            while waiting or running:
                for step in [one for one in waiting if not unmade.intersection(one.inputs)]:
                    if step.is_done():
                        waiting.remove(step)
                        unmade.discard(step.output)
                        yield Progress(step)
                    elif len(running) < jobs:
                        waiting.remove(step)
                        process = context.Process(
                            target=_execute, args=(command, step, _log(logs, step))
                        )
                        process.start()
                        running[process.sentinel] = (step, process, time.monotonic())
                for sentinel in connection.wait(list(running), timeout=None if running else 0):
                    step, ended, start = running.pop(sentinel)
                    ended.join()
                    said = _said(_log(logs, step))
                    _check(step, ended.exitcode, said)
                    unmade.discard(step.output)
                    warnings = tuple(line for line in said if line.startswith(WARNING))
                    yield Progress(step, time.monotonic() - start, warnings)
        finally:
            for _, stopped, _ in running.values():
                stopped.terminate()
            for _, stopped, _ in running.values():
                stopped.join()


def _log(folder: str, step: Step) -> Path:
    return Path(folder) / step.name


def _execute(command: Callable[[list[str]], None], step: Step, log: Path) -> None:
    """Run one step in this process: stdout goes nowhere, stderr to `log`."""
    gc.freeze()  # a collection would write to, and so copy, all memory shared with the parent
    for path, stream in ((Path(os.devnull), sys.stdout), (log, sys.stderr)):
        with open(path, "wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    command(list(step.arguments))


def _said(log: Path) -> list[str]:
    """The lines that a step wrote to stderr."""
    return log.read_text(errors="replace").strip().splitlines() if log.exists() else []


def _check(step: Step, code: int | None, said: list[str]) -> None:
    if code:
        last = said[-1].removeprefix("memtool: error: ") if said else f"exit code {code}"
        raise MemtoolError(f"{step.name}: {last} (the step alone: {step.command()})")
    if not step.output.exists():
        raise MemtoolError(f"{step.name}: did not make {step.output}")
