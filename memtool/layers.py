"""Layers of a model: their names, activations, cuts, and running a model from or up to one.

A layer is a submodule by its dotted name, and "at a layer" is its output. A module that is called
several times in one forward pass gives `relu`, `relu_1`, ... in order of execution. Everything
here works by forward hooks that are gone when the function or block ends: nothing is traced into
a graph or rewritten, so any model will do.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from memtool import MemtoolError

T = TypeVar("T")


@dataclass(frozen=True)
class Layer:
    """A layer as `trace` met it.

    `shape` is that of one example, without the batch. `is_cut`: everything after it depends on
    the input only through it. `same_as` names the outermost layer whose output is the very same
    tensor (a block and its last ReLU), itself if there is no other.
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
    """True while a model runs only in order to reach the layer it is to go on from: what its
    layers give there is not part of the computation, so hooks that observe look away."""

    active = False


@contextmanager
def _hooked(
    model: nn.Module, see: Callable[[str, nn.Module, Any], Any], replaces: bool = False
) -> Iterator[None]:
    """Call `see(name, module, output)` after each call of each submodule; what it returns, unless
    None, replaces the output. A hook that `replaces` runs first: observers see the new output."""
    names = {module: name for name, module in model.named_modules() if name}
    taken = set(names.values())
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


def trace(model: nn.Module, images: Tensor) -> list[Layer]:
    """The layers of `model` in order of execution, found in one forward pass of `images`.

    `images` are as the model takes them, float (n, c, h, w); two zeros do. Cuts are read off the
    autograd graph: a layer is one if every path from output to input leads through its tensor.
    """
    seen: list[tuple[str, nn.Module, Any, Tensor, int, _Node | None]] = []

    def see(name: str, module: nn.Module, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None and not _Replay.active:
            seen.append((name, module, output, tensor, tensor._version, _node(tensor)))

    with evaluating(model), torch.enable_grad(), _hooked(model, see):
        images = images.detach().clone().requires_grad_().clone()
        result = first_tensor(model(images))
    if result is None:
        raise MemtoolError(f"{type(model).__name__} returns no tensor")
    cuts = _dominators(_node(result), _node(images))
    cuts.discard(_node(result))  # nothing comes after the model's own output
    outermost = {(id(tensor), version): name for name, _, _, tensor, version, _ in seen}
    return [
        Layer(
            name=name,
            type=type(module).__name__,
            shape=tuple(tensor.shape[1:]),
            is_cut=isinstance(output, Tensor) and node in cuts,
            same_as=outermost[id(tensor), version],
        )
        for name, module, output, tensor, version, node in seen
    ]


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
    """Carries the activation out of a forward pass that needs to go no further."""

    def __init__(self, activation: Tensor) -> None:
        self.activation = activation


def run_to(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """The activation at `layer` for `images`; what comes after the layer does not run."""

    def see(name: str, module: nn.Module, output: Any) -> None:
        if name == layer and not _Replay.active:
            raise _Reached(output)

    with _hooked(model, see):
        try:
            model(images)
        except _Reached as reached:
            return reached.activation
    raise MemtoolError(f"{type(model).__name__} has no layer {layer!r}, or does not call it")


def run_from(model: nn.Module, layer: str, activation: Tensor, images: Tensor) -> Tensor:
    """The output of `model` with `activation`, (n, ...), in place of what `layer` gives.

    The part before the layer runs on the first of `images` alone, and on all of them where the
    model needs to know their number (a class token expanded to the batch, say).
    """
    try:
        return _run_from(model, layer, activation, images[:1])
    except RuntimeError:
        if len(images) == 1:
            raise
    return _run_from(model, layer, activation, images)


def _run_from(model: nn.Module, layer: str, activation: Tensor, images: Tensor) -> Tensor:
    def see(name: str, module: nn.Module, output: Any) -> Tensor | None:
        if name != layer:
            return None
        _Replay.active = outer
        return activation

    outer = _Replay.active
    _Replay.active = True
    try:
        with _hooked(model, see, replaces=True):
            result = first_tensor(model(images))
    finally:
        _Replay.active = outer
    assert result is not None
    return result
