"""Building models from their specs: with fresh weights, or as skeletons without any."""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from memtool import MemtoolError
from memtool.errors import one_line
from memtool.models.sources import check_options, factory_of
from memtool.models.spec import ModelSpec
from memtool.tensors import Shape

# Called with the shape of each parameter of a skeleton; raises Refused to stop the building.
Admit = Callable[[Shape], None]


class Refused(MemtoolError):
    """Raised while a skeleton is built, because its parameters are not what they should be."""


def build(spec: ModelSpec) -> nn.Module:
    """The model, with fresh weights drawn from torch's global generator.

    Raises MemtoolError for an unknown name, for options that the model does not have or cannot be
    built with, and for code that is not trusted.
    """
    try:
        if spec.is_stitched:
            return _build_stitched(spec)
        check_options(spec)
        return _build_from_factory(spec)
    except MemtoolError:
        raise
    except Exception as error:  # whatever a factory makes of its options
        raise MemtoolError(f"model {str(spec)!r} cannot be built: {one_line(error)}") from error


def _build_stitched(spec: ModelSpec) -> nn.Module:
    from memtool.models.stitched import StitchedModel, StitchingLayer

    front, back = map(build, spec.parts)
    layers = spec.options["front_layer"], spec.options["back_layer"]
    return StitchedModel(front, back, StitchingLayer.from_json(spec.options["stitching"]), *layers)


def _build_from_factory(spec: ModelSpec) -> nn.Module:
    options = dict(spec.options)
    if spec.name in ("torchvision:googlenet", "torchvision:inception_v3"):
        options.setdefault("init_weights", True)  # or they warn that the default may change
    model = _unwrapped(factory_of(spec)(**options))
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise MemtoolError(
            f"model {spec.name!r}: gives an object of type {type(model).__name__}, not a "
            "torch.nn.Module whose layers run in Python"
        )
    for key, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise MemtoolError(
                f"model {spec.name!r}: keeps {key} in its state_dict, which is no tensor, and a "
                "checkpoint holds tensors alone"
            )
    if lazy := [name for name, parameter in model.named_parameters() if is_lazy(parameter)]:
        raise MemtoolError(
            f"model {spec.name!r}: {lazy[0]} gets its size from the first images; a checkpoint "
            "needs layers of known sizes (nn.Linear in place of nn.LazyLinear)"
        )
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            # In eval mode it would drop masked tokens and give nested tensors to its layers, which
            # have no shape and go on as zeros: another network than the one that is trained.
            module.use_nested_tensor = False
    return model


def _unwrapped(model: Any) -> Any:
    """The module in what `torch.compile` or a data-parallel wrapper has made of it: hooks on its
    layers need the module itself."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif type(model).__name__ == "OptimizedModule" and hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def shapes_of(model: nn.Module) -> dict[str, Shape]:
    """The shapes of the tensors in a model's `state_dict`, by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def skeleton(spec: ModelSpec, admit: Admit = lambda shape: None) -> nn.Module:
    """The model without weights: its parameters are on the meta device, its buffers are real.

    This takes next to no memory and time. `admit` is called with the shape of each parameter before
    that has cost anything, and may raise Refused. The few models that look at their parameters
    while they are built, as parametrizations do, get real ones. Raises MemtoolError as `build`
    does.

    >>> from memtool.models import ModelSpec
    >>> model = skeleton(ModelSpec("digits-cnn"))
    >>> model.fc.weight.device, model.block1.norm.running_mean.device
    (device(type='meta'), device(type='cpu'))
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with meta_parameters(admit):
                model = build(spec)
            if not any(map(is_parametrized, model.modules())):
                return model
        except Refused:
            raise
        except MemtoolError:
            pass
        with meta_parameters(admit, to_meta=False):
            return build(spec)


@contextmanager
def meta_parameters(admit: Admit, to_meta: bool = True) -> Iterator[None]:
    """Within the block, call `admit` with the shape of each parameter that a module registers, and
    move it to the meta device: before it has been filled, so that even a huge one takes no memory.

    `torch.device("meta")` around the block would move too much: buffers, and what a model computes
    while it is built (regnet its widths, swin its position indices), have to keep their values.
    """

    def see(module: Any, name: str, parameter: Any) -> Any:
        if parameter is None:
            return None
        admit(tuple(parameter.shape))
        if parameter.is_meta or not to_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(see)
    try:
        yield
    finally:
        handle.remove()


def size_limit(spec: ModelSpec, shapes: Collection[Shape]) -> Admit:
    """An `admit` for the skeleton of a model whose weights are in a file: tensors of these shapes.

    It refuses a model with more than twice as many parameters, or twice as many elements in them,
    as the file holds; and somewhat more, since a factory may replace what it has built. Raises
    Refused at once if an option is a number beyond the limit on elements, since a factory might
    make a list of that length. A spec that the user typed may be of any size.
    """
    if spec.trusted:
        return lambda shape: None
    tensors = 2 * len(shapes) + 1000
    elements = 2 * sum(map(math.prod, shapes)) + 10_000_000
    too_large = Refused(f"model {str(spec)!r:.200} is far larger than what it holds")
    if not all(abs(number) <= elements for number in _numbers(dict(spec.options))):
        raise too_large

    def admit(shape: Shape) -> None:
        nonlocal tensors, elements
        tensors -= 1
        elements -= math.prod(shape)
        if tensors < 0 or elements < 0:
            raise too_large

    return admit


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a JSON value, however deep."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
