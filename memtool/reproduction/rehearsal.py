"""The commands of a reproduction, tried before the work: what one of them would refuse is to be
told at once, not when the first network is trained."""

import tempfile
from dataclasses import replace
from pathlib import Path

from memtool import MemtoolError
from memtool.reproduction.recipes import Recipe
from memtool.reproduction.runner import Command, try_steps
from memtool.reproduction.steps import steps_for

# The steps whose commands a rehearsal tries.
TRIED = ("train r0-s0", "cka r0-s0", "stitching r0-s0")


def rehearse(recipe: Recipe, root: Path, command: Command) -> None:
    """Raise MemtoolError for what `command`, memtool with the given arguments, would refuse of the
    options of the recipe: with a network of its model that is not trained, in a temporary folder in
    place of `root`."""
    trial = recipe.but(ratios=(0,), seeds=1, saved=(), supplement=(0,))
    with tempfile.TemporaryDirectory(prefix="memtool-") as folder:
        steps = {step.name: step for step in steps_for(trial, Path(folder))}
        train, *compared = (steps[name] for name in TRIED)
        # The last word counts, whatever the recipe's own options for train say.
        untrained = replace(train, words=(*train.words, "--epochs", "0", "--save-at", ""))
        tried = [replace(step, words=(*step.words, "--dry-run"), outputs=()) for step in compared]
        try:
            try_steps([steps["labels r0-s0"], untrained, *tried], command)
        except MemtoolError as error:
            raise MemtoolError(str(error).replace(folder, str(root))) from error
