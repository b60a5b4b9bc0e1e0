"""The commands of a reproduction, tried before the work: what one of them would refuse is to be
told at once, not when the first network is trained."""

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from memtool import MemtoolError, specs
from memtool.data.spec import TORCHVISION
from memtool.models import ModelSpec
from memtool.models.spec import code_file
from memtool.paths import expanded
from memtool.reproduction.recipes import Recipe
from memtool.reproduction.record import Record
from memtool.reproduction.runner import Command, try_steps
from memtool.reproduction.steps import Step, steps_for
from memtool.tensors import read_metadata

if TYPE_CHECKING:
    from memtool.data import Dataset

# The steps whose commands a rehearsal tries, and the options of a reproduction that make them.
TRIED = {
    "labels r0-s0": "--data",
    "train r0-s0": "--data, --model, --train",
    "cka r0-s0": "--layers, --cka",
    "stitching r0-s0": "--cuts, --stitch",
}


def rehearse(recipe: Recipe, root: Path, command: Command) -> None:
    """Raise MemtoolError for what `command`, memtool with the given arguments, would refuse of the
    options of the recipe: with a network of its model that is not trained, in a temporary folder in
    place of `root`."""
    trial = recipe.but(ratios=(0,), seeds=1, saved=(), supplement=(0,))
    with tempfile.TemporaryDirectory(prefix="memtool-") as folder:
        steps = {step.name: step for step in steps_for(trial, Path(folder))}
        labels, train, *compared = (steps[name] for name in TRIED)
        # The last word counts, whatever the recipe's own options for train say.
        untrained = replace(train, words=(*train.words, "--epochs", "0", "--save-at", ""))
        tried = [labels, untrained, *map(_dry, compared)]
        try:
            # Without outputs no error says how to run the step alone: its inputs will not be there.
            try_steps([replace(step, outputs=()) for step in tried], command)
        except MemtoolError as error:
            # Nor will the network that is tried be there for anyone to look at.
            told = re.sub(r" \(list them: [^()]*\)", "", str(error))
            told = told.replace(str(train.root / train.key), f"model {recipe.model}")
            name, _, reason = told.replace(folder, str(root)).partition(": ")
            raise MemtoolError(f"{name} ({TRIED[name]}): {reason}") from error


def check_inputs(recipe: Recipe, steps: Iterable[Step], load: Callable[[str], "Dataset"]) -> None:
    """Raise MemtoolError if a network that is there was trained with other code than the FILE.py of
    the recipe's model holds now, or on other data than its folder or file does, which `load`
    reads: steps go by names, and would count as done. Where the data are no longer, nothing can be
    compared; that is told by the first step that needs them."""
    spec, source = ModelSpec.parse(recipe.model), specs.split(recipe.data, "data set")[0]
    path = expanded(source.removeprefix("folder:"))
    may_change = source not in ("digits", *TORCHVISION) and path.exists()
    trained = _trained(steps) if spec.sha256 or may_change else []
    now = load(recipe.data).fingerprint if trained and may_change else None
    for path in (step.root / step.key for step in trained):
        metadata = read_metadata(path, "checkpoint")
        for what, found, recorded in (
            (code_file(spec.name), spec.sha256, metadata["model"].get("sha256")),
            (recipe.data, now, metadata["data"].get("fingerprint")),
        ):
            if found and found != recorded:
                raise MemtoolError(
                    f"{path}: was not trained with {what} as it is now (another SHA-256); bring "
                    f"that back, remove {path.parents[1]}, or choose another -o"
                )


def check_unrecorded(steps: Iterable[Step], known: Mapping[str, str], command: Command) -> None:
    """Raise MemtoolError if a network that is there, though no record says by which command, is of
    other settings than its step's: after `make`, say, with variables that were changed midway."""
    try_steps([_dry(step) for step in _trained(steps) if step.key not in known], command)


def adopt_trained(steps: Iterable[Step], record: Record, command: Command) -> None:
    """Take the networks that are there, and of the settings that their steps have now, for made by
    these, though the record has other commands for them, or of other files: make has trained them
    since."""
    for step in _trained(steps):
        if step.is_stale(record.commands):
            with suppress(MemtoolError):
                try_steps([_dry(step)], command)
                record.keep(step)


def _trained(steps: Iterable[Step]) -> list[Step]:
    """The steps that train a network which is there."""
    return [step for step in steps if step.words[0] == "train" and (step.root / step.key).exists()]


def _dry(step: Step) -> Step:
    """The step, but for its work."""
    return replace(step, words=(*step.words, "--dry-run"), outputs=())
