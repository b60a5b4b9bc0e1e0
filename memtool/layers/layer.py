"""Layers: what `trace` tells of a model's submodules, and choosing among them by name."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch

from memtool import MemtoolError
from memtool.errors import told_names
from memtool.specs import matches

logger = logging.getLogger("memtool")

MASKED = 100  # what a mask such as -1e4 makes is at least so many times as large as all else


@dataclass(frozen=True)
class Layer:
    """A layer as `trace` met it: a submodule's output in a forward pass.

    `shape` is that of one example. `batch_axis` is the axis of the output that counts the examples:
    0 but for layers that have, say, tokens first; None if there is none, as in layers that see
    windows or never see an image, and then `shape` is empty. `channel_axis` is the axis of `shape`
    that counts channels, None if it is unclear. `dtype` is that of the output.

    `is_cut`: all that comes after the layer depends on the input only through it. `is_output`: its
    output is the model's own, so that nothing comes after it, and it is no cut. `same_as` names
    the layer that stands for all whose output is the very same tensor: the outermost block around
    the module that made it (a block and its last ReLU, a ReLU and the dropout that passes it on),
    itself if there is no other, or if the model looks at values, by which that might depend on the
    images. `absence` says why no more than name and type are known: torch.jit made the module,
    which hides its calls, the model did not call it, or it returned no tensor.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    is_cut: bool
    same_as: str
    batch_axis: int | None = 0
    channel_axis: int | None = None
    dtype: torch.dtype = torch.float32
    is_output: bool = False
    absence: str = ""


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors in what a module returned: a tensor, or a tuple, list, dict or dataclass."""
    if isinstance(output, Tensor):
        yield output
    for _, part in parts_of(output):
        yield from tensors_in(part)


def parts_of(output: Any) -> Iterable[tuple[Any, Any]]:
    """What a tuple, list, dict or dataclass consists of, by key, name or number."""
    if isinstance(output, Mapping):
        return output.items()
    if is_dataclass(output) and not isinstance(output, type):
        return ((field.name, getattr(output, field.name)) for field in fields(output))
    if isinstance(output, tuple | list):
        return zip(getattr(output, "_fields", range(len(output))), output, strict=True)
    return ()


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor in what a module returned that has an axis, as a loss has not; None if there
    is none.

    >>> first_tensor({"loss": torch.tensor(0.5), "tokens": torch.zeros(2, 16, 8)}).shape
    torch.Size([2, 16, 8])
    """
    return next((tensor for tensor in tensors_in(output) if tensor.ndim), None)


def with_first(output: Any, tensor: Tensor) -> Any:
    """What a module returned, with `tensor` in place of its `first_tensor`; None if that is in
    something of which no copy can be made: a list, say, may be kept elsewhere, to be appended to.

    >>> with_first((torch.zeros(2, 3), {"weights": None}), torch.ones(1))
    (tensor([1.]), {'weights': None})
    """
    if isinstance(output, Tensor):
        return tensor
    if type(output) is dict:
        parts: Iterable[tuple[Any, Any]] = output.items()
    elif is_dataclass(output):
        parts = ((field.name, getattr(output, field.name)) for field in fields(output))
    else:
        parts = enumerate(output) if isinstance(output, tuple) else ()
    for key, part in parts:
        if first_tensor(part) is None:
            continue
        if (changed := with_first(part, tensor)) is None:
            return None
        if isinstance(output, dict):
            return {**output, key: changed}
        if not isinstance(output, tuple):
            with suppress(TypeError, ValueError):  # it has an __init__ of its own, say
                return replace(output, **{key: changed})
            return None
        content = (*output[:key], changed, *output[key + 1 :])
        return type(output)(*content) if hasattr(output, "_fields") else content
    return None


def is_batched(tensor: Tensor) -> bool:
    """Whether torch.vmap hides an axis of the tensor."""
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def plain(tensor: Tensor) -> Tensor:
    """The tensor as all operations take it: dense, none of inference mode, of no subclass, and
    without what transforms such as torch.func.grad have put around it."""
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor).detach()  # of forward gradients too
    with torch._C.DisableTorchFunctionSubclass():  # whose own would give the subclass back
        dense = tensor if tensor.layout is torch.strided else tensor.to_dense()
        own = dense if type(dense) is Tensor else dense.as_subclass(Tensor)
    return own.clone() if own.is_inference() else own


def computed_scale(x: Tensor) -> float:
    """The largest absolute value among the finite numbers that were computed, 0 if there is none.

    Numbers MASKED times as large as all smaller ones, and as 1, do not count: a mask has put them
    there, or was added, next to which differences between all others would be none. A feature may
    be that large by itself; what rounding leaves of the others is small beside them even then.

    >>> computed_scale(torch.tensor([0.5, -2.0, -1e9])), computed_scale(torch.tensor([3e4]))
    (2.0, 30000.0)
    """
    sizes = x[x.isfinite()].abs()
    largest = float(sizes.max()) if len(sizes) else 0.0
    if largest <= MASKED:
        return largest
    sizes = sizes.clamp(min=1).unique()  # in ascending order
    below_gap = sizes[:-1][sizes[1:] / sizes[:-1] > MASKED]
    return float(below_gap[0]) if len(below_gap) else largest


def axes_in_memory(tensor: Tensor) -> list[int]:
    """The axes of a tensor in the order in which they lie in memory, the slowest first.

    >>> axes_in_memory(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last))
    [0, 2, 3, 1]
    """
    return sorted(range(tensor.ndim), key=tensor.stride, reverse=True)


# Why there is no activation of a module.
UNCALLED = "not called by the model in the pass that shows its layers"
TENSORLESS = "no tensor that has an axis is returned"
SCRIPTED = (
    "scripted modules hide what they compute; build the model without torch.jit, which changes no "
    "weights"
)


def select(
    layers: Sequence[Layer], patterns: Sequence[str], origin: str, prefixes: Sequence[str] = ()
) -> list[Layer]:
    """The layers that match any of `patterns`, in order of execution; `all` is every layer.

    Patterns are names, or globs on them in which `*` crosses dots. They match without the
    `prefixes` too, which are those of a stitched model's parts. Layers that have no batch axis, as
    those without an activation, are left out, with a note. Raises MemtoolError for a pattern that
    matches nothing, with the nearest names, and for one that matches such layers alone, with the
    reason; `origin` says whose layers they are.
    """
    usable = [layer for layer in layers if layer.batch_axis is not None]
    for pattern in patterns:
        _check_pattern(pattern, layers, usable, origin, prefixes)
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        if layer.batch_axis is None and _matches(layer.name, patterns, prefixes):
            if prefixes and layer.absence == UNCALLED:
                continue  # each part of a stitched model runs up to the cut, or on from it, alone
            why = layer.absence or "no axis of the output counts the images"
            reasons.setdefault(why, []).append(layer.name)
    for why, left_out in reasons.items():
        logger.info(f"{origin}: {told_names(left_out)} left out: {why}")
    return [layer for layer in usable if _matches(layer.name, patterns, prefixes)]


def _check_pattern(
    pattern: str,
    layers: Sequence[Layer],
    usable: Sequence[Layer],
    origin: str,
    prefixes: Sequence[str],
) -> None:
    if any(_matches(layer.name, [pattern], prefixes) for layer in usable):
        return
    listing = f"(list them: memtool info --layers {origin})"
    matching = [layer for layer in layers if _matches(layer.name, [pattern], prefixes)]
    if matching and all(layer.absence for layer in matching):
        why = "; ".join(dict.fromkeys(layer.absence for layer in matching))
        raise MemtoolError(
            f"{origin}: no activations of layer {pattern!r}: {why}; others: "
            f"memtool info --layers {origin}"
        )
    if matching:
        raise MemtoolError(
            f"{origin}: no axis of the output of layer {pattern!r} counts the images, so that "
            f"images cannot be compared there; take the block around it {listing}"
        )
    names = [layer.name for layer in usable]
    nearest = get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
    hint = "; ? stands for the comma in a name" if any("," in name for name in nearest) else ""
    raise MemtoolError(
        f"{origin}: no layer matches {pattern!r}; nearest: {', '.join(nearest)}{hint} {listing}"
    )


def _matches(name: str, patterns: Iterable[str], prefixes: Iterable[str]) -> bool:
    names = {name, *(name.removeprefix(prefix) for prefix in prefixes)}
    return any(matches(one, pattern) for one in names for pattern in patterns)
