"""Layouts that timm reads although they are not its model's: it rewrites names and tensors when it
loads weights, and so does memtool, with the very function that timm has for the model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from memtool import MemtoolError, models
from memtool.checkpoints.adapters import WRAPPERS
from memtool.checkpoints.names import Shapes, have_same_names, misfits, outline_of
from memtool.models import ModelSpec
from memtool.tensors import Shape

if TYPE_CHECKING:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

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
        if (made := _rewritten(spec, stored)) is None:
            continue
        if not have_same_names(outline_of(spec, stored).shapes, made.shapes):
            continue
        completed = complete(spec, made.shapes)
        made = _rewritten(completed, stored) or made
        if not misfits(outline_of(completed, stored).shapes, made.shapes):
            if made.resamples:
                raise _resampled(completed, stored, made.shapes)
            return Match(completed, names, made.shapes, known_by, made.rewrite)
    return None


class _Rewritten(NamedTuple):
    """timm's function for a model, the shapes of the tensors that it makes of some, and whether it
    resamples one of them."""

    rewrite: Rewrite
    shapes: dict[str, Shape]
    resamples: bool


def _rewritten(spec: ModelSpec, stored: Shapes) -> _Rewritten | None:
    """What timm makes of tensors with the shapes `stored`; None if it reads no other layout for the
    model, or fails."""
    import torch

    tensors = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
    try:
        if not (rewrite := models.timm_rewrite(spec, models.size_limit(spec, stored.values()))):
            return None
        with _resampling() as resampling:
            made = rewrite(tensors)
    except Exception:  # whatever it raises for tensors that it does not expect
        return None
    shapes = {name: tuple(tensor.shape) for name, tensor in made.items()}
    return _Rewritten(rewrite, shapes, resampling.seen)


def _resampling() -> "TorchDispatchMode":
    """A context that sees whether tensors are resampled within it: its `seen` is then true.

    timm interpolates them; where it has an interpolation of its own, which takes values that those
    of the meta device do not have, it gives such a one an empty tensor instead.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Resampling(TorchDispatchMode):
        seen = False

        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            self.seen |= "upsample" in func.name() or func.name().startswith("aten::new_empty")
            return func(*args, **(kwargs or {}))

    return Resampling()  # type: ignore[no-untyped-call]


def _resampled(spec: ModelSpec, stored: Shapes, made: Shapes) -> MemtoolError:
    both = (name for name in stored if prod(made.get(name, stored[name])) != prod(stored[name]))
    name = next(both, None)
    what = "it holds position embeddings" if name is None else f"{name} is {stored[name]}"
    whose = "" if name is None else f", whose is {made[name]}"
    return MemtoolError(
        f"{what}, for another size of images than {spec}{whose}; give the size that it was trained "
        f"with (--model '{spec.name}?img_size=N')"
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
