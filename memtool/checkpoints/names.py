"""Names and shapes of tensors: what a model expects, and how those in a file differ from it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from memtool import models
from memtool.errors import some
from memtool.models import ModelSpec
from memtool.tensors import Shape

if TYPE_CHECKING:
    from torch import nn

Shapes = Mapping[str, Shape]
Value = TypeVar("Value")

# Batch norm counts batches since PyTorch 0.4.1; nothing in eval mode depends on the count.
UNCOUNTED = ".num_batches_tracked"


def renamed(values: Mapping[str, Value], names: Mapping[str, str]) -> dict[str, Value]:
    """`values`, given by the names in a file, by the names in the model, as in `Reading.names`.

    >>> renamed({"module.weight": (3, 4), "n_averaged": ()}, {"weight": "module.weight"})
    {'weight': (3, 4)}
    """
    return {name: values[key] for name, key in names.items()}


def tied_names(model: "nn.Module") -> dict[str, list[str]]:
    """The names in a model's `state_dict` of each tensor that has several: for each of them, the
    others.

    >>> from torch import nn
    >>> model = nn.ModuleDict({"embed": nn.Linear(2, 2, bias=False)})
    >>> model["head"] = model["embed"]
    >>> tied_names(model)
    {'embed.weight': ['head.weight'], 'head.weight': ['embed.weight']}
    """
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    several = [same for same in names.values() if len(same) > 1]
    return {name: [one for one in same if one != name] for same in several for name in same}


@dataclass(frozen=True)
class Outline:
    """A model's tensors: their shapes, and the `tied_names` of those that have several."""

    shapes: dict[str, Shape]
    tied: dict[str, list[str]]


def outline_of(spec: ModelSpec, stored: Shapes | None = None) -> Outline:
    """The tensors of the model; given the shapes `stored` in a file, only if it is not far larger.

    To find the model of a file takes a dozen such questions, about a few specs, and each skeleton a
    tenth of a second or more, so the answers are kept. Raises MemtoolError as `skeleton` does.
    """
    text = json.dumps(spec.json(), sort_keys=True)  # the options of a spec are not hashable
    sizes = None if stored is None else tuple(sorted(stored.values()))
    return _outline(text, spec.trusted, sizes)


@lru_cache(maxsize=64)
def _outline(text: str, trusted: bool, stored: tuple[Shape, ...] | None) -> Outline:
    spec = replace(ModelSpec.from_json(json.loads(text)), trusted=trusted)
    limit = () if stored is None else (models.size_limit(spec, stored),)
    model = models.skeleton(spec, *limit)
    return Outline(models.shapes_of(model), tied_names(model))


def misfits(expected: Shapes, found: Shapes) -> str:
    """Which tensors of a file do not fit those that a model expects, in words; empty if all fit.

    Counts of batches may be missing, as they are in old files.

    >>> misfits({"weight": (3, 4), "bias": (3,)}, {"weight": (4, 3), "scale": (1,)})
    '1 missing (bias); 1 unexpected (scale); 1 of another shape (weight (4, 3) for (3, 4))'
    """
    problems = {
        "missing": [key for key in _counted(expected) if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another shape": [
            f"{key} {found[key]} for {expected[key]}"
            for key in expected
            if key in found and found[key] != expected[key]
        ],
    }
    return "; ".join(
        f"{len(keys)} {what} ({some(keys)})" for what, keys in problems.items() if keys
    )


def have_same_names(expected: Iterable[str], found: Iterable[str]) -> bool:
    """Whether two sets of tensors have the same names, counts of batches apart."""
    return set(_counted(expected)) == set(_counted(found))


def _counted(names: Iterable[str]) -> list[str]:
    """All names but those of counts of batches."""
    return [name for name in names if not name.endswith(UNCOUNTED)]
