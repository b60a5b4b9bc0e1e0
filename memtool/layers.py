"""Layers of a model: their names, activations, cuts, and running a model from or up to one.

A layer is a submodule by its dotted name, and "at a layer" is its output. A module that is called
several times in one forward pass gives `relu`, `relu_1`, ... in order of execution. Everything
here works by forward hooks that are gone when the function or block ends: nothing is traced into
a graph or rewritten, so any model will do.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from memtool import MemtoolError

T = TypeVar("T")


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


class _Replay:
    """The runs of a model that are under way only in order to reach the layer it is to go on from:
    what its layers give there is not part of the computation, so hooks that observe look away."""

    active: ClassVar[set[object]] = set()


@contextmanager
def _hooked(
    model: nn.Module,
    see: Callable[[str, nn.Module, Any], Any],
    layers: Collection[str] | None = None,
    replaces: bool = False,
) -> Iterator[None]:
    """Call `see(name, module, output)` after each call of each submodule; what it returns, unless
    None, replaces the output. A hook that `replaces` runs first: observers see the new output.

    With `layers`, only modules that can give one of those are hooked (and seen)."""
    names = {module: name for name, module in model.named_modules() if name}
    taken = set(names.values())
    if layers is not None:
        names = {module: name for module, name in names.items() if _gives(name, layers)}
    calls: dict[str, int] = defaultdict(int)

    def after(module: nn.Module, inputs: Any, output: Any) -> Any:
        name = names[module]
        count = calls[name]
        calls[name] += 1
        numbered = f"{name}_{count}" if count else name
        return see(f"{name}:{count}" if count and numbered in taken else numbered, module, output)

    handles = [module.register_forward_hook(after, prepend=replaces) for module in names]
    handles.append(model.register_forward_pre_hook(lambda *_: calls.clear()))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gives(module: str, layers: Collection[str]) -> bool:
    """Whether one of the layers may be a call of the module: its name, or that with a number."""
    return any(
        layer == module or layer.startswith((f"{module}_", f"{module}:")) for layer in layers
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; every submodule's own mode is back when the block ends."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class _Seen:
    """A layer's output as it appeared. `value` is the same for all layers that gave one tensor,
    unchanged by an in-place module in between."""

    name: str
    module: nn.Module
    output: Any
    tensor: Tensor
    value: tuple[int, int]
    node: "_Node | None"


def trace(model: nn.Module, images: Tensor) -> list[Layer]:
    """The layers of `model` in order of execution, found in one forward pass of `images`.

    `images` are as the model takes them, float (n, c, h, w); two zeros do. Cuts are read off the
    autograd graph: a layer is one if every path from output to input leads through its tensor.
    """
    seen: list[_Seen] = []
    passed: dict[tuple[int, int], tuple[int, int]] = {}
    kept: list[Tensor] = []

    def see(name: str, module: nn.Module, output: Any) -> Tensor | None:
        tensor = first_tensor(output)
        if tensor is None or _Replay.active:
            return None
        value = _identity(tensor)
        if output is tensor and value in given[module]:
            # An Identity, or a dropout in eval mode: what came in may go other ways too, and those
            # do not lead through this layer. A copy tells them apart.
            kept.append(tensor)  # while it is there, no other gets its identity
            output = tensor = tensor.clone()
            passed[_identity(tensor)] = value
        value = _identity(tensor)
        while value in passed:
            value = passed[value]
        seen.append(_Seen(name, module, output, tensor, value, _node(tensor)))
        return tensor if output is tensor else None

    with evaluating(model), torch.enable_grad(), _inputs(model) as given, _hooked(model, see):
        images = images.detach().clone().requires_grad_().clone()
        result = first_tensor(model(images))
    if result is None:
        raise MemtoolError(f"{type(model).__name__} returns no tensor")
    cuts = _dominators(_node(result), _node(images))
    cuts.discard(_node(result))  # nothing comes after the model's own output
    bare = {module: name for name, module in model.named_modules()}
    same: dict[tuple[int, int], list[tuple[str, str]]] = defaultdict(list)
    for layer in seen:
        same[layer.value].append((bare[layer.module], layer.name))
    outermost = {value: _outermost(names) for value, names in same.items()}
    return [
        Layer(
            name=layer.name,
            type=type(layer.module).__name__,
            shape=tuple(layer.tensor.shape[1:]),
            is_cut=layer.output is layer.tensor and layer.node in cuts,
            same_as=outermost[layer.value],
        )
        for layer in seen
    ]


def _identity(tensor: Tensor) -> tuple[int, int]:
    """Which tensor it is, and after how many changes in place."""
    return id(tensor), tensor._version


@contextmanager
def _inputs(model: nn.Module) -> Iterator[dict[nn.Module, set[tuple[int, int]]]]:
    """Within the block, which tensors each submodule was last called with."""
    given: dict[nn.Module, set[tuple[int, int]]] = {}

    def before(module: nn.Module, inputs: Any, named: Any) -> None:
        values = [*inputs, *named.values()]
        given[module] = {_identity(value) for value in values if isinstance(value, Tensor)}

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True) for module in model.modules()
    ]
    try:
        yield given
    finally:
        for handle in handles:
            handle.remove()


def _outermost(names: Sequence[tuple[str, str]]) -> str:
    """Of layers with one output, as (module, layer) names in order of execution: the outermost
    block around the first, which made it, else the first itself."""
    maker, first = names[0]
    around = [(len(module), layer) for module, layer in names if maker.startswith(f"{module}.")]
    return min(around)[1] if around else first


# A tensor in the autograd graph: the function that gave it, and which of its outputs it is.
_Node = tuple[Any, int]


def _node(tensor: Tensor) -> "_Node | None":
    return (tensor.grad_fn, tensor.output_nr) if tensor.grad_fn is not None else None


def _dominators(output: "_Node | None", source: "_Node | None") -> "set[_Node | None]":
    """The nodes that every path from `output` back to `source` goes through.

    Those are the nodes v with paths(output, v) * paths(v, source) = paths(output, source), counted
    in whole numbers of any size.
    """
    if output is None or source is None:
        return set()
    order: list[_Node] = []  # every node after all those it depends on
    done: set[_Node] = set()
    stack = [(output, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif node not in done:
            done.add(node)
            stack.append((node, True))
            stack += [(parent, False) for parent in _parents(node)]
    to_source: dict[_Node, int] = defaultdict(int, {source: 1})
    for node in order:
        if node != source:
            to_source[node] = sum(to_source[parent] for parent in _parents(node))
    from_output: dict[_Node, int] = defaultdict(int, {output: 1})
    for node in reversed(order):
        for parent in _parents(node):
            from_output[parent] += from_output[node]
    total = to_source[output]
    return {node for node in order if total and from_output[node] * to_source[node] == total}


def _parents(node: "_Node") -> "list[_Node]":
    return [(function, number) for function, number in node[0].next_functions if function]


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


def memory_format(model: nn.Module, images: Tensor) -> torch.memory_format:
    """The memory format of images in which `model` takes the least time, found with two of them.

    On a CPU that is channels last, in which a forward pass takes 0.5 to 1.1 times as long, in the
    mean 0.85; but not of a model that cannot do with it, as one that calls `view` on what a
    convolution gave.
    """
    if images.device.type != "cpu":
        return torch.contiguous_format
    try:
        model(images[:2].contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


@contextmanager
def observed(
    model: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], None]
) -> Iterator[set[str]]:
    """Within the block, each forward pass of `model` calls `see(name, activation)` for each layer
    in `names` as its activation appears, before an in-place module that follows can change it.

    Yields the set of the layers seen so far.
    """
    wanted = set(names)
    seen: set[str] = set()

    def look(name: str, module: nn.Module, output: Any) -> None:
        if name in wanted and not _Replay.active:
            tensor = first_tensor(output)
            if tensor is not None:
                see(name, tensor)
                seen.add(name)

    with _hooked(model, look):
        yield seen


@contextmanager
def activations(
    model: nn.Module, names: Iterable[str], reduce: Callable[[Tensor], T]
) -> Iterator[dict[str, T]]:
    """Within the block, each forward pass of `model` fills the dict with `reduce(activation)` of
    each layer in `names`. An activation is reduced as it appears and never kept (unless `reduce`
    does)."""
    reduced: dict[str, T] = {}

    def see(name: str, activation: Tensor) -> None:
        reduced[name] = reduce(activation)

    with observed(model, names, see):
        yield reduced


class _Reached(Exception):
    """Ends a forward pass that needs to go no further; `found` says whose, if one is in another."""

    def __init__(self, found: dict[str, Tensor]) -> None:
        self.found = found


def run_to(model: nn.Module, layers: Collection[str], images: Tensor) -> dict[str, Tensor]:
    """The activation at each of `layers` for `images`; what comes after the last does not run.

    Raises MemtoolError for a layer that `model` does not have or does not call.
    """
    found: dict[str, Tensor] = {}
    around = set(_Replay.active)  # those of which this run is a part

    def see(name: str, module: nn.Module, output: Any) -> None:
        if name in layers and _Replay.active <= around:
            # A copy, unless nothing runs that could change it in place.
            found[name] = output if len(found) + 1 == len(layers) else output.clone()
            if len(found) == len(layers):
                raise _Reached(found)

    with _hooked(model, see, layers):
        try:
            model(images)
        except _Reached as reached:
            if reached.found is found:
                return found
            raise
    (missing, *_) = [layer for layer in layers if layer not in found]
    raise MemtoolError(f"{type(model).__name__} has no layer {missing!r}, or does not call it")


def run_from(model: nn.Module, layer: str, activation: Tensor, images: Tensor) -> Tensor:
    """The output of `model` with `activation`, (n, ...), in place of what `layer` gives.

    The part before the layer runs on the first of `images` alone and without gradients, and on all
    of them where the model needs to know their number (a class token expanded to the batch, say).
    """
    try:
        return _run_from(model, layer, activation, images[:1])
    except RuntimeError:
        if len(images) == 1:
            raise
    return _run_from(model, layer, activation, images)


def _run_from(model: nn.Module, layer: str, activation: Tensor, images: Tensor) -> Tensor:
    gradients, replay = torch.is_grad_enabled(), object()

    def see(name: str, module: nn.Module, output: Any) -> Tensor | None:
        if name != layer:
            return None
        _Replay.active.discard(replay)
        torch.set_grad_enabled(gradients)
        return activation

    _Replay.active.add(replay)
    try:
        with torch.no_grad(), _hooked(model, see, [layer], replaces=True):
            result = first_tensor(model(images))
    finally:
        _Replay.active.discard(replay)
    assert result is not None
    return result
