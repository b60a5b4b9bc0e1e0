"""The layers of a model, in order of execution, their shapes, and which of them are cuts."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from memtool import MemtoolError
from memtool.errors import is_lack_of_memory, one_line
from memtool.layers.dataflow import DataFlow, Layout, dominators, layout_of
from memtool.layers.hooks import evaluating, watching
from memtool.layers.layer import (
    SCRIPTED,
    TENSORLESS,
    UNCALLED,
    Layer,
    first_tensor,
    is_batched,
    with_first,
)

Output = Callable[[Any], Tensor | None]  # of a model's result, the tensor that counts

# Which axis of their input and output modules take for the channels: the one after the batch, or
# the last one.
CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.Upsample,
    nn.PixelShuffle,
)
CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)

# Modules whose absence needs no reason: lists, and those whose calls cannot be observed.
NEVER_CALLED = (nn.ModuleList, nn.ModuleDict, torch.jit.ScriptModule)

_Value = tuple[int, int | None]


class Trace(NamedTuple):
    """The layers of a model in order of execution; `reads_values` says that with other weights, or
    on other images, it may go another way, since it has looked at values. `absent` are the modules
    of which there is no activation."""

    layers: list[Layer]
    reads_values: bool
    absent: list[Layer]

    @property
    def named(self) -> list[Layer]:
        """All that a pattern may name."""
        return [*self.layers, *self.absent]


@dataclass(frozen=True)
class _Seen:
    """A layer's output as it appeared. `value` is the same for all layers that gave one tensor,
    unchanged by an in-place module in between."""

    name: str
    module: nn.Module
    value: "_Value"
    shape: torch.Size
    dtype: torch.dtype
    layout: Layout
    node: int | None  # None where nothing can take its place, or it depends on no image


def trace(model: nn.Module, images: Tensor, output: Output = first_tensor) -> list[Layer]:
    """The layers of `model` in order of execution, found in two forward passes; last of all the
    scripted modules, whose calls cannot be observed.

    `images` are as the model takes them, float (n, c, h, w) with n > 1; two zeros do. A second pass
    with one image more tells which axis of each output counts the images. `output` chooses, of what
    the model returns, the tensor whose dependence on a layer makes that a cut.

    Raises MemtoolError if the model returns no such tensor, if it is no module whose calls can be
    observed, if there are no images, and if it does not run on them.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    >>> for layer in trace(model, torch.zeros(2, 1, 8, 8)):
    ...     print(layer.name, layer.type, layer.shape, layer.is_cut)
    0 Conv2d (4, 6, 6) True
    1 ReLU (4, 6, 6) True
    2 Flatten (144,) True
    3 Linear (10,) False
    """
    if not isinstance(model, nn.Module):
        raise MemtoolError(
            f"a module is traced, not a {type(model).__name__}; that of a network is network.model"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise MemtoolError("a scripted module hides its layers; trace the one that it was made of")
    usual = "give them as the model takes them, as network.normalized(images) does"
    if not isinstance(images, Tensor):
        raise MemtoolError(f"images are a tensor, not a {type(images).__name__}; {usual}")
    if not images.ndim or not len(images):
        raise MemtoolError(
            f"there are no images in a tensor of shape {tuple(images.shape)}; {usual}"
        )
    try:
        return traced(model, images, output).layers
    except MemtoolError:
        raise
    except Exception as error:  # whatever a model raises
        if is_lack_of_memory(error):
            raise
        told = f"{type(model).__name__}, given images of {tuple(images.shape)}, {images.dtype}"
        raise MemtoolError(f"{told}: {one_line(error)}; {usual}") from error


def traced(model: nn.Module, images: Tensor, output: Output = first_tensor) -> Trace:
    """What `trace` finds, whether it holds whatever the weights are, and what is not there."""
    with evaluating(model), torch.no_grad():
        seen, called, cuts, final, axes, flow = _observed_pass(model, images, output)
        more = _shapes(model, torch.cat([images, images[:1]]))
    bare = {module: name for name, module in model.named_modules()}
    same: dict[_Value, list[tuple[str, str]]] = defaultdict(list)
    for one in seen:
        same[one.value].append((bare[one.module], one.name))
    outermost = {value: _outermost(names) for value, names in same.items()}
    is_square = images.shape[-2:-1] == images.shape[-1:]
    layers = []
    for one in seen:
        batch = batch_axis(one.shape, more.get(one.name), len(images))
        shape = () if batch is None else (*one.shape[:batch], *one.shape[batch + 1 :])
        layers.append(
            Layer(
                name=one.name,
                type=type(one.module).__name__,
                shape=shape,
                is_cut=batch == 0 and one.node in cuts and one.value != final,
                # Where the model looks at values, on other images a block may change what it passes
                # on now: a mask that is applied if there is one, say.
                same_as=one.name if flow.reads_values else outermost[one.value],
                batch_axis=batch,
                channel_axis=channel_axis(shape, axes.of(one.layout), is_square),
                dtype=one.dtype,
                is_output=one.value == final,
            )
        )
    layers += [
        _without_activation(name, module, SCRIPTED)
        for name, module in model.named_modules()
        if isinstance(module, torch.jit.ScriptModule)
    ]
    known = {one.module for one in seen}
    absent = [
        _without_activation(name, module, TENSORLESS if module in called else UNCALLED)
        for name, module in model.named_modules()
        if name and module not in known and not isinstance(module, NEVER_CALLED)
    ]
    return Trace(layers, flow.reads_values, absent)


def _without_activation(name: str, module: nn.Module, why: str) -> Layer:
    return Layer(name, type(module).__name__, (), False, name, batch_axis=None, absence=why)


def _observed_pass(
    model: nn.Module, images: Tensor, output: Output
) -> tuple[list[_Seen], set[nn.Module], set[int], _Value, "_ChannelAxes", DataFlow]:
    """What the layers gave in order of execution, the modules that were called, the nodes that are
    cuts or the output, the value that is the output, what the modules take for channels, and what
    is computed from what."""
    seen: list[_Seen] = []
    called: set[nn.Module] = set()
    passed: dict[_Value, _Value] = {}
    kept: list[Tensor] = []  # while a tensor is there, no other gets its identity
    flow = DataFlow()
    axes = _ChannelAxes(flow)

    def identity(tensor: Tensor) -> _Value:
        """Which tensor it is, and with which content: a change in place makes another."""
        return id(tensor), flow.node(tensor)

    def see(name: str, module: nn.Module, result: Any) -> Any:
        called.add(module)
        tensor = first_tensor(result)
        if tensor is None:
            return None
        axes.learn(module, tensor)
        value = identity(tensor)
        while value in passed:
            value = passed[value]
        # The layer is a cut only if what it returns is what the model goes on with: not the tensor
        # that an Identity was given, or one that is changed in place, or another one of a tuple.
        # From here on a copy stands for it.
        kept.append(tensor)
        replaced = with_first(result, copy := tensor.clone())
        if replaced is not None:
            tensor = copy
            passed[identity(tensor)] = value
            kept.append(tensor)
        node = None if replaced is None else flow.node(tensor)
        shape, dtype = _shape(tensor), tensor.dtype
        seen.append(_Seen(name, module, value, shape, dtype, layout_of(tensor), node))
        return replaced

    with _reading(model, axes), watching(model, see), flow:
        images = images.clone()
        source = flow.source(images)
        result = output(model(images))
    if result is None:
        raise MemtoolError(f"{type(model).__name__} returns no tensor")
    last = flow.node(result)
    nodes = set() if last is None else dominators(flow.parents, last, source)
    final = passed.get(identity(result), identity(result))
    return seen, called, nodes, final, axes, flow


def _shapes(model: nn.Module, images: Tensor) -> dict[str, torch.Size]:
    """The shape of each layer's output."""
    shapes: dict[str, torch.Size] = {}

    def see(name: str, module: nn.Module, output: Any) -> None:
        if (tensor := first_tensor(output)) is not None:
            shapes[name] = _shape(tensor)

    with watching(model, see):
        model(images)
    return shapes


def _shape(tensor: Tensor) -> torch.Size:
    """The shape, none where it is not the whole one, as within torch.vmap, or rows are nested."""
    return torch.Size() if is_batched(tensor) or tensor.is_nested else tensor.shape


def batch_axis(shape: Sequence[int], more: Sequence[int] | None, n: int) -> int | None:
    """Which axis counts the images: the one that has n elements for n images and n + 1 for one
    more. None if no axis does, or several do.

    >>> batch_axis((2, 16), (3, 16), 2), batch_axis((16, 2, 8), (16, 3, 8), 2)
    (0, 1)
    >>> batch_axis((8, 16), (12, 16), 2), batch_axis((1, 17), (1, 17), 2)
    (None, None)
    """
    if more is None or len(shape) != len(more):
        return None
    axes = [i for i, sizes in enumerate(zip(shape, more, strict=True)) if sizes == (n, n + 1)]
    others = [a for a, b in zip(shape, more, strict=True) if a != b and (a, b) != (n, n + 1)]
    return axes[0] if len(axes) == 1 and not others else None


def _outermost(names: Sequence[tuple[str, str]]) -> str:
    """Of layers with one output, as (module, layer) names in order of execution: the outermost
    block around the first, which made it, else the first itself."""
    maker, first = names[0]
    around = [(len(module), layer) for module, layer in names if maker.startswith(f"{module}.")]
    return min(around)[1] if around else first


FIRST, LAST = 0, -1  # axes, of an example


class _ChannelAxes:
    """Which axis modules take for channels in the tensors that they make or read."""

    def __init__(self, flow: DataFlow) -> None:
        self._flow = flow
        self._learned: dict[int, set[Layout]] = {FIRST: set(), LAST: set()}

    def learn(self, module: nn.Module, tensor: Tensor) -> None:
        """`module` has made `tensor`, or is about to read it."""
        # LayerNorm2d, as several libraries have it, is a LayerNorm with the channels first.
        is_2d = isinstance(module, nn.LayerNorm) and "2d" in type(module).__name__
        if is_2d or isinstance(module, CHANNELS_FIRST):
            self._learned[FIRST].add(layout_of(tensor))
        elif isinstance(module, CHANNELS_LAST):
            self._learned[LAST].add(layout_of(tensor))

    @cached_property
    def _groups(self) -> dict[int, set[Layout]]:
        return {axis: set(map(self._flow.group, some)) for axis, some in self._learned.items()}

    def of(self, layout: Layout) -> set[int]:
        """Which of FIRST and LAST modules take for channels, of a layout and all in its group; to
        be asked when the forward pass is over."""
        group = self._flow.group(layout)
        return {axis for axis, groups in self._groups.items() if group in groups}


def channel_axis(shape: tuple[int, ...], learned: set[int], is_square: bool) -> int | None:
    """Which axis of a shape without the batch counts channels.

    That is FIRST or LAST, as was `learned` of modules. If that is nothing, or both, it is the last
    one of vectors and tokens and, if the images are square, the one axis of a map that differs from
    the other two. None if nothing tells.

    >>> channel_axis((32, 32, 16), {FIRST}, False), channel_axis((32, 32, 16), set(), False)
    (0, None)
    >>> channel_axis((64, 7, 7), set(), True), channel_axis((7, 7, 64), set(), True)
    (0, 2)
    """
    last = len(shape) - 1
    if shape and len(learned) == 1:
        return last if LAST in learned else 0
    if len(shape) in (1, 2):
        return last
    if len(shape) == 3 and is_square and (shape[0] == shape[1]) != (shape[1] == shape[2]):
        return 0 if shape[1] == shape[2] else last
    return None


@contextmanager
def _reading(model: nn.Module, axes: _ChannelAxes) -> Iterator[None]:
    """Within the block, learn from what the submodules are called with."""

    def before(module: nn.Module, inputs: Any, named: Any) -> None:
        for value in (*inputs, *named.values()):
            if isinstance(value, Tensor):
                axes.learn(module, value)

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True)
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
