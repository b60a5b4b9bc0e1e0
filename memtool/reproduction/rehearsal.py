"""The commands of a reproduction, tried before the work: what one of them would refuse is to be
told at once, not when the first network is trained."""

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from memtool import MemtoolError
from memtool.models import ModelSpec
from memtool.models.spec import code_file
from memtool.reproduction.recipes import Recipe
from memtool.reproduction.runner import Command, try_steps
from memtool.reproduction.steps import Step, steps_for
from memtool.tensors import read_metadata

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


def check_code(recipe: Recipe, steps: Iterable[Step]) -> None:
    """Raise MemtoolError if a network that is there was trained with other code than the FILE.py of
    the recipe's model holds now: steps go by the names of files, and would count as done."""
    spec = ModelSpec.parse(recipe.model)
    for path in (step.root / step.outputs[0] for step in steps if step.words[0] == "train"):
        if spec.sha256 and path.exists():
            recorded = read_metadata(path, "checkpoint")["model"].get("sha256")
            if recorded != spec.sha256:
                raise MemtoolError(
                    f"{path}: was not trained with {code_file(spec.name)} as it is now (another "
                    f"SHA-256); bring that back, remove {path.parent}, or choose another -o"
                )
