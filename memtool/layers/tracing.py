"""The layers of a model, in order of execution, and which of them are cuts."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memtool import MemtoolError
from memtool.layers.hooks import evaluating, watching
from memtool.layers.layer import Layer, first_tensor


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
        if tensor is None:
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

    with evaluating(model), torch.enable_grad(), _inputs(model) as given, watching(model, see):
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
