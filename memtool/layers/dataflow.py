"""What is computed from what: the operations of a forward pass as a graph.

Autograd's graph would not do: it does not see what is detached or computed without gradients.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

# Operations that are not elementwise, and leave each element in its place all the same.
COPIES = {torch.ops.aten.clone, torch.ops.aten.copy_, torch.ops.aten._to_copy}

# Tags of operations whose result, or its shape, Python may go by.
VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

# Methods that give Python the values without an operation.
READING = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}

# A tensor's layout: its memory, shape and strides. Views of one memory have different layouts.
Layout = tuple[int, tuple[int, ...], tuple[int, ...]]


class DataFlow(TorchDispatchMode):
    """Records, within its block, from which tensors each tensor is computed.

    A node stands for the content of some memory; an operation that writes to memory gives it a new
    node, whose parents are those of all that the operation reads. Views share the node of their
    memory. Nodes are numbered in the order of their computation, so that parents have lower
    numbers. What depends on no `source` has no node.

    `reads_values` says whether Python got a value (`.item()`, `.tolist()`, `if` on a tensor), or a
    shape that depends on values: with other weights, the model may go another way.

    Beside that, layouts are grouped: two are in one group if elementwise operations lead from one
    to the other, so that their axes mean the same.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parents: list[set[int]] = []
        self.reads_values = False
        self._nodes: dict[int, int] = {}
        self._kept: list[Any] = []  # memory that is freed could be given to another tensor
        self._group_of: dict[Layout, Layout] = {}
        self._methods = _Methods(self)

    def __enter__(self) -> Self:
        self._methods.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self._methods.__exit__(*raised)  # type: ignore[no-untyped-call]

    def source(self, tensor: Tensor) -> int:
        """Make the content of `tensor` a node without parents; its number."""
        return self._write(tensor, set())

    def node(self, tensor: Tensor) -> int | None:
        """The node of the present content of `tensor`; None if it depends on no source."""
        return self._nodes.get(_memory(tensor))

    def group(self, layout: Layout) -> Layout:
        """The layout that stands, so far, for the group of this one."""
        passed = []
        while layout in self._group_of:
            passed.append(layout)
            layout = self._group_of[layout]
        self._group_of |= dict.fromkeys(passed, layout)  # the way is shorter the next time
        return layout

    def _write(self, tensor: Tensor, parents: set[int]) -> int:
        self._kept.append(tensor)
        self.parents.append(parents)
        self._nodes[_memory(tensor)] = len(self.parents) - 1
        return len(self.parents) - 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.reads_values |= _gives_values(func, args)
        read = list(tensors((args, kwargs)))
        written = list(tensors(_written(func, args, kwargs or {})))
        memories = {_memory(tensor) for tensor in read}
        fresh = [tensor for tensor in tensors(result) if _memory(tensor) not in memories]
        parents = {self._nodes[memory] for memory in memories if memory in self._nodes}
        if parents:
            for tensor in (*written, *fresh):
                self._write(tensor, parents)
        if torch.Tag.pointwise in func.tags or func.overloadpacket in COPIES:
            self._join((*written, *fresh), read)
        return result

    def _join(self, results: Iterable[Tensor], read: Iterable[Tensor]) -> None:
        theirs = list(map(layout_of, read))
        for ours in map(layout_of, results):
            for layout in theirs:
                if layout[1] == ours[1]:  # of one shape
                    mine, other = self.group(ours), self.group(layout)
                    if mine != other:
                        self._group_of[other] = mine


class _Methods(TorchFunctionMode):
    """Notes which methods are called, for those that no operation tells of."""

    def __init__(self, flow: DataFlow) -> None:
        super().__init__()
        self._flow = flow

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._flow.reads_values |= func in READING
        return func(*args, **(kwargs or {}))


def _gives_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation gives Python a value, or a shape that depends on values."""
    if func is torch.ops.aten.index.Tensor:  # which is tagged for its masks: `x[x > 0]`
        return any(index.dtype in (torch.bool, torch.uint8) for index in tensors(args[1]))
    return not VALUES.isdisjoint(func.tags)


def tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among the arguments or results of an operation."""
    return (value for value in tree_iter(values) if isinstance(value, Tensor))


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation writes to, as its schema says."""
    values = [
        args[i] if i < len(args) else kwargs.get(argument.name)
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info and argument.alias_info.is_write
    ]
    return [value for value in values if value is not None]


def _memory(tensor: Tensor) -> int:
    """What identifies the memory of a tensor while it lives."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # sparse and nested tensors have several
        return id(tensor)


def layout_of(tensor: Tensor) -> Layout:
    """What groups are made of; good for as long as the tensor lives."""
    if tensor.is_nested:  # rows of several lengths have neither shape nor strides
        return _memory(tensor), (), ()
    strides = tensor.stride() if tensor.layout is torch.strided else ()
    return _memory(tensor), tuple(tensor.shape), tuple(strides)


def dominators(parents: list[set[int]], output: int, source: int) -> set[int]:
    """The nodes that every path from `output` back to `source` goes through, both included.

    These are the nodes v with paths(source, v) * paths(v, output) = paths(source, output), counted
    in whole numbers of any size. `parents` of a node have lower numbers than it has.

    >>> dominators([set(), {0}, {1}, {1}, {2, 3}, {4}], output=5, source=0) == {0, 1, 4, 5}
    True
    """
    down: dict[int, int] = defaultdict(int, {source: 1})
    for node in range(source + 1, len(parents)):
        down[node] = sum(down[parent] for parent in parents[node])
    up: dict[int, int] = defaultdict(int, {output: 1})
    for node in range(output, source, -1):
        for parent in parents[node]:
            up[parent] += up[node]
    total = down[output]
    return {node for node in range(source, output + 1) if total and down[node] * up[node] == total}
