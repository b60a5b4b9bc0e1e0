"""Layouts that timm reads although they are not its model's: it rewrites names and tensors when it
loads weights, and so does memtool, with the very function that timm has for the model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from memtool import MemtoolError, models
from memtool.checkpoints.adapters import WRAPPERS
from memtool.checkpoints.names import Shapes, have_same_names, misfits, outline_of
from memtool.models import ModelSpec
from memtool.tensors import Shape

if TYPE_CHECKING:
    import torch

Rewrite = Callable[[Mapping[str, "torch.Tensor"]], dict[str, "torch.Tensor"]]


@dataclass(frozen=True)
class Match:
    """The model whose tensors a file holds.

    `names` maps the name of each tensor in the model to that in the file, and `shapes` to its
    shape. Where the library of the model reads another layout, `rewrite` makes the model's tensors
    of those that `names` gives. `known_by` says how the model is known: by `--model`, `config.json`
    or `tensors`.
    """

    spec: ModelSpec
    names: Mapping[str, str]
    shapes: Shapes
    known_by: str
    rewrite: Rewrite | None = None


def rewriting(
    spec: ModelSpec,
    shapes: Shapes,
    complete: Callable[[ModelSpec, Shapes], ModelSpec],
    known_by: str,
) -> Match | None:
    """How timm would make the tensors of its model of those in a file with these shapes; None if it
    would not, or if the model is not timm's.

    `complete` gives a spec the options that the shapes of the model's tensors tell. No weights are
    read: timm's function runs on tensors of the meta device. Raises MemtoolError if it would
    resample a tensor for another size of images.
    """
    if not spec.name.startswith("timm:"):
        return None
    for names in _stripped(list(shapes)):
        stored = {name: shapes[key] for name, key in names.items()}
        if (made := _shapes_made(spec, stored)) is None:
            continue
        if not have_same_names(outline_of(spec, stored).shapes, made[1]):
            continue
        completed = complete(spec, made[1])
        rewrite, result = _shapes_made(completed, stored) or made
        if not misfits(outline_of(completed, stored).shapes, result):
            _refuse_resampling(completed, stored, result)
            return Match(completed, names, result, known_by, rewrite)
    return None


def _shapes_made(spec: ModelSpec, stored: Shapes) -> tuple[Rewrite, dict[str, Shape]] | None:
    """timm's function for the model, and the shapes of the tensors that it makes of some with the
    shapes `stored`; None if there is no such function, or if it fails."""
    import torch

    tensors = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
    try:
        rewrite = models.timm_rewrite(spec, models.size_limit(spec, stored.values()))
        made = rewrite(tensors) if rewrite else {}
    except Exception:  # whatever it raises for tensors that it does not expect
        return None
    return (rewrite, {name: tuple(made[name].shape) for name in made}) if rewrite else None


def _refuse_resampling(spec: ModelSpec, stored: Shapes, made: Shapes) -> None:
    for name in stored.keys() & made.keys():
        if prod(stored[name]) != prod(made[name]):
            raise MemtoolError(
                f"{name} is {stored[name]}, for another size of images than {spec}, whose is "
                f"{made[name]}; give the size that it was trained with (--model "
                f"'{spec.name}?img_size=N')"
            )


def _stripped(names: Sequence[str]) -> Iterator[dict[str, str]]:
    """The names in a file without WRAPPERS, then with one more token in front removed each time,
    for as long as all have the same; each with the name in the file."""
    rest = {
        tuple(token for token in name.split(".") if token not in WRAPPERS): name for name in names
    }
    while len(rest) == len(names) and all(rest):
        yield {".".join(tokens): name for tokens, name in rest.items()}
        if len({tokens[0] for tokens in rest}) > 1:
            return
        rest = {tokens[1:]: name for tokens, name in rest.items()}
