"""Building models from their specs, with weights or without."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from memtool import MemtoolError
from memtool.errors import one_line
from memtool.models.sources import check_options, factory_of
from memtool.models.spec import STITCHED, ModelSpec

if TYPE_CHECKING:
    from torch import nn


def build(spec: ModelSpec) -> "nn.Module":
    """The model, with fresh weights from torch's global generator. Raises MemtoolError."""
    try:
        if spec.name == STITCHED:
            return _stitched(spec)
        check_options(spec)
        return _built(spec)
    except MemtoolError:
        raise
    except Exception as error:  # whatever a factory makes of its options
        raise MemtoolError(f"model {str(spec)!r} cannot be built: {one_line(error)}") from error


def _stitched(spec: ModelSpec) -> "nn.Module":
    from memtool.models.stitched import StitchedModel, StitchingLayer

    front, back = map(build, spec.parts)
    layers = spec.options["front_layer"], spec.options["back_layer"]
    return StitchedModel(front, back, StitchingLayer.from_json(spec.options["stitching"]), *layers)


def _built(spec: ModelSpec) -> "nn.Module":
    from torch import nn

    options = dict(spec.options)
    if spec.name in ("torchvision:googlenet", "torchvision:inception_v3"):
        options.setdefault("init_weights", True)  # or they warn that the default may change
    model = factory_of(spec)(**options)
    if not isinstance(model, nn.Module):
        raise MemtoolError(
            f"model {spec.name!r}: gives a {type(model).__name__}, not a torch.nn.Module"
        )
    return model


class Refused(MemtoolError):
    """What `admit` raises to stop the building of a skeleton."""


Shape = tuple[int, ...]


def at_most(spec: ModelSpec, shapes: Mapping[str, Shape]) -> Callable[[Shape], None]:
    """An `admit` for the model of a file that holds tensors of these shapes: it stops a model with
    more than twice as many parameters, or elements in them (and some more: a factory may replace
    what it has built).

    A spec that the user typed may be of any size. Raises Refused at once if another one has a
    number beyond the count of elements: a factory might make a list of as many.
    """
    if spec.trusted:
        return lambda shape: None
    tensors = 2 * len(shapes) + 1000
    elements = 2 * sum(map(math.prod, shapes.values())) + 10_000_000
    for number in _numbers(dict(spec.options)):
        if not abs(number) <= elements:
            raise Refused(f"model {str(spec)!r:.200} is far larger than what it holds")

    def admit(shape: Shape) -> None:
        nonlocal tensors, elements
        tensors -= 1
        elements -= math.prod(shape)
        if tensors < 0 or elements < 0:
            raise Refused(f"model {str(spec)!r:.200} is far larger than what it holds")

    return admit


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)


def skeleton(spec: ModelSpec, admit: Callable[[Shape], None] = lambda shape: None) -> "nn.Module":
    """The model without weights: its parameters on the meta device, its buffers as they are.

    Takes next to no memory and time: `admit` gets the shape of each parameter before that has cost
    anything, and may raise Refused. The few models that look at their parameters while they are
    built get real ones.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        try:
            with _watched_parameters(admit, to_meta=True):
                return build(spec)
        except Refused:
            raise
        except MemtoolError:
            with _watched_parameters(admit, to_meta=False):
                return build(spec)


@contextmanager
def _watched_parameters(admit: Callable[[Shape], None], to_meta: bool) -> Iterator[None]:
    """Within the block each parameter is shown to `admit`, and moved to the meta device, as a
    module takes it: before it has been filled, so that even a huge one has not cost any memory.

    Better than torch.device("meta") around the block: buffers, and what a model computes while it
    is built (regnet its widths, swin its position indices), keep their values.
    """
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def see(module: Any, name: str, parameter: Any) -> Any:
        if parameter is None:
            return None
        admit(tuple(parameter.shape))
        if parameter.is_meta or not to_meta:
            return None
        return torch.nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(see)
    try:
        yield
    finally:
        handle.remove()
