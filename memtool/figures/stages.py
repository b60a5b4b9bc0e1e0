"""Stages of a network, by the names of its layers: which layers end one, and what it is called."""

import re
from collections.abc import Sequence

from memtool import MemtoolError
from memtool.figures.rows import listed
from memtool.specs import matches

# `layer1`, `block2`, `denseblock3`, `stage4`, and what a list of blocks has: `features.5`,
# `stages.0`, `blocks.11`, `layers.1`; whatever network they are part of.
STAGE = re.compile(
    r"(?:.*?\.)??(?:(?:layer|stage|\w*block)_?\d+|(?:features|stages|blocks|layers)\.\w+)(?=\.|$)"
)


def stage_of(layer: str) -> str | None:
    """The stage that a layer is part of, or is; None for the layers before and after all stages.

    >>> stage_of("layer1.0.conv1"), stage_of("stages.2.blocks.0.norm"), stage_of("fc")
    ('layer1', 'stages.2', None)
    """
    found = STAGE.match(layer)
    return found[0] if found else None


def stage_ends(layers: Sequence[str], marks: Sequence[str] = ()) -> dict[int, str]:
    """The positions of the layers that end a stage, and the names of the stages.

    Stages of a single layer each are not told: there, a mark at every layer would say nothing. With
    `marks`, globs, it is the layers that match which are marked, by their own names.

    Raises MemtoolError for a glob that matches no layer.

    >>> stage_ends(["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "fc"])
    {2: 'layer1', 4: 'layer2'}
    >>> stage_ends(["conv1", "conv2", "fc"], marks=["conv?"])
    {0: 'conv1', 1: 'conv2'}
    """
    if marks:
        return {at: layers[at] for at in marked(layers, marks, "mark")}
    stages = groups_of(layers)
    if all(len(members) == 1 for members in stages.values()):
        return {}
    return {members[-1]: stage for stage, members in stages.items()}


def groups_of(layers: Sequence[str]) -> dict[str, list[int]]:
    """The positions of the layers of each stage."""
    found: dict[str, list[int]] = {}
    for position, layer in enumerate(layers):
        if stage := stage_of(layer):
            found.setdefault(stage, []).append(position)
    return found


def marked(names: Sequence[str], patterns: Sequence[str], what: str) -> list[int]:
    """The positions of the names that match any of the globs; `all` is every one.

    Raises MemtoolError, which calls the globs `what`, for one that matches nothing.
    """
    for pattern in patterns:
        if pattern != "all" and not any(matches(name, pattern) for name in names):
            raise MemtoolError(
                f"no {what} matches {pattern!r}; the layers in the table are {listed(names)}"
            )
    return [
        position
        for position, name in enumerate(names)
        if any(matches(name, pattern) for pattern in patterns)
    ]
