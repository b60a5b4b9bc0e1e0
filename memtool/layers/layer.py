"""Layers: what `trace` tells of a model's submodules, and choosing among them by name."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from memtool import MemtoolError


@dataclass(frozen=True)
class Layer:
    """A layer as `trace` met it.

    `shape` is that of one example, without the batch. `is_cut`: everything after it depends on
    the input only through it. `same_as` names the layer that stands for all whose output is the
    very same tensor: the outermost block around the module that made it (a block and its last
    ReLU, a ReLU and the dropout that passes it on), itself if there is no other.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    is_cut: bool
    same_as: str


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor of what a module returned: a tensor, or a tuple, dict or dataclass."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        parts: Iterable[Any] = output.values()
    elif is_dataclass(output):
        parts = (getattr(output, field.name) for field in fields(output))
    else:
        parts = output if isinstance(output, tuple | list) else ()
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)


def select(layers: Sequence[Layer], patterns: Sequence[str], origin: str) -> list[Layer]:
    """The layers that match any of `patterns`, in order of execution; `all` is every layer.

    Patterns are globs on dotted names, in which `*` crosses dots. Raises MemtoolError for a
    pattern that matches nothing, with the nearest names; `origin` says whose layers they are.
    """
    names = [layer.name for layer in layers]
    for pattern in patterns:
        if pattern != "all" and not any(fnmatchcase(name, pattern) for name in names):
            nearest = get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
            raise MemtoolError(
                f"{origin}: no layer matches {pattern!r}; nearest: {', '.join(nearest)} "
                f"(list them: memtool info --layers {origin})"
            )
    return [
        layer
        for layer in layers
        if any(pattern == "all" or fnmatchcase(layer.name, pattern) for pattern in patterns)
    ]
