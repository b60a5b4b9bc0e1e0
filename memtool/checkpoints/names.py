"""Names and shapes of tensors: how those in a file correspond to those of a model.

Training code often wraps a model, which puts a prefix before the name of each tensor; `renamings`
lists the ways to read such names. To support another wrapper, add its prefix to WRAPPERS.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from memtool.tensors import Shape

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

Shapes = Mapping[str, Shape]
Value = TypeVar("Value")

# The prefixes of DataParallel, torch.compile, Lightning, and of the moving averages that timm and
# others keep. The weights themselves come before averages of them.
WRAPPERS = (
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "network.",
    "ema.",
    "model_ema.",
    "ema_model.",
    "averaged_model.",
)
# Tensors that moving averages keep beside the weights.
COUNTERS = {"n_averaged", "initted", "step", "num_updates", "decay"}
# Batch norm counts batches since PyTorch 0.4.1; nothing in eval mode depends on the count.
UNCOUNTED = ".num_batches_tracked"


@dataclass(frozen=True)
class Renaming:
    """One way to read the names of a file's tensors as those of a model's.

    `names` maps each name in the model to the name in the file. `prefixes` were removed, outermost
    first, and `ignored` are the names in the file that are not in `names`.
    """

    names: Mapping[str, str]
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def log(self, path: Path) -> None:
        """Log what was removed and ignored, for the file at `path`."""
        if self.prefixes:
            prefix = "".join(self.prefixes)
            logger.info(f"{path}: removed the prefix {prefix!r} from the names of its tensors")
        if self.ignored:
            logger.info(f"{path}: ignored {len(self.ignored)} tensors ({first_few(self.ignored)})")


def renamings(names: Sequence[str]) -> Iterator[Renaming]:
    """The ways to read the names in a file: as they are, then with one more prefix removed each
    time, for as long as every name has one.

    >>> for renaming in renamings(["module.model.fc.weight", "module.model.fc.bias"]):
    ...     print(list(renaming.names), renaming.prefixes)
    ['module.model.fc.weight', 'module.model.fc.bias'] ()
    ['model.fc.weight', 'model.fc.bias'] ('module.',)
    ['fc.weight', 'fc.bias'] ('module.', 'model.')
    """
    renaming: Renaming | None = Renaming({name: name for name in names})
    while renaming:
        yield renaming
        renaming = _without_prefix(renaming)


def _without_prefix(renaming: Renaming) -> Renaming | None:
    """`renaming` with one more prefix removed, counters ignored; None if a name has no prefix.

    Where there are several prefixes, that of the weights is removed, and averages are ignored.
    """
    groups: dict[str, dict[str, str]] = {}
    for name, key in renaming.names.items():
        if name in COUNTERS:
            continue
        prefix = next((prefix for prefix in WRAPPERS if name.startswith(prefix)), None)
        if prefix is None:
            return None
        groups.setdefault(prefix, {})[name.removeprefix(prefix)] = key
    if not groups:
        return None
    chosen = min(groups, key=WRAPPERS.index)
    kept = set(groups[chosen].values())
    ignored = tuple(key for key in renaming.names.values() if key not in kept)
    return Renaming(groups[chosen], (*renaming.prefixes, chosen), renaming.ignored + ignored)


def renamed(values: Mapping[str, Value], names: Mapping[str, str]) -> dict[str, Value]:
    """`values`, given by the names in a file, by the names in the model, as in `Renaming.names`.

    >>> renamed({"module.weight": (3, 4), "n_averaged": ()}, {"weight": "module.weight"})
    {'weight': (3, 4)}
    """
    return {name: values[key] for name, key in names.items()}


def shapes_of(model: "nn.Module") -> dict[str, Shape]:
    """The shapes of the tensors in a model's `state_dict`, by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


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
        f"{len(keys)} {what} ({first_few(keys)})" for what, keys in problems.items() if keys
    )


def have_same_names(expected: Shapes, found: Shapes) -> bool:
    """Whether two sets of tensors have the same names, counts of batches apart."""
    return set(_counted(expected)) == set(_counted(found))


def _counted(names: Shapes) -> list[str]:
    """All names but those of counts of batches."""
    return [name for name in names if not name.endswith(UNCOUNTED)]


def first_few(names: Sequence[str]) -> str:
    """At most three of the names.

    >>> first_few(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])
