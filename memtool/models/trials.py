"""What a few passes tell of a model: whether it can be trained, what its results depend on besides
weights and images, and whether it takes another format in memory."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from memtool import MemtoolError
from memtool.errors import some
from memtool.layers import evaluating, parts_of, tensors_in, unchanged
from memtool.models.building import build, shapes_of
from memtool.models.outputs import described, find_logits, foreign_code, nearly_equal, parts_by_name
from memtool.models.spec import ModelSpec

logger = logging.getLogger("memtool")

MOST_NESTED = 3  # lists in lists


def check_classifier(spec: ModelSpec, image_shape: tuple[int, ...], classes: int) -> None:
    """Raise MemtoolError unless a model of this spec can be trained to tell the classes apart:
    unless it takes two images of `image_shape`, (channels, height, width), or vectors, (features,),
    in training and in eval mode, returns logits of that many classes, and has gradients.

    A note says which part of the result is taken for the logits, where there are several; a warning
    names what the model keeps of what it has seen, where no checkpoint would.
    """
    with torch.random.fork_rng(devices=[]):
        model = build(spec)
        images = torch.rand(3, *image_shape)
        shapes, kept = shapes_of(model), list[str]()
        for mode in ("training", "eval"):
            trains = mode == "training"
            model.train(trains)
            what = f"model {spec} in {mode} mode, given 2 images of {image_shape}"
            with foreign_code(what), torch.set_grad_enabled(trains):
                result = _passed(model, images[:2])
            found = find_logits(result, classes)
            if found is None:
                raise MemtoolError(
                    f"{what}: returns {described(result)}, in which there are no logits of shape "
                    f"(2, {classes}), one for each class"
                )
            if trains:
                with foreign_code(f"model {spec} in {mode} mode, in the backward pass"):
                    _backward(model, found[1])
            _tell_choice(spec, mode, result, found[0])
            with foreign_code(what), torch.set_grad_enabled(trains):
                kept += [name for name in _changed(model, images[:2]) if name not in kept]
        what = f"model {spec}"
        if new := [name for name, shape in shapes_of(model).items() if shapes.get(name) != shape]:
            raise MemtoolError(
                f"{what}: gets tensors, or their sizes, when it first runs ({some(new)}); a "
                "checkpoint needs them as it is built"
            )
        if kept:
            logger.warning(
                f"{what}: changes {some(kept)} with each pass, which no checkpoint holds: if "
                "results depend on that, a run that is resumed is another one; register buffers"
            )
        warn_if_results_vary(lambda few: model(few.clone()), images, what, model)

        def again() -> nn.Module:
            twin = build(spec)
            twin.load_state_dict(model.state_dict())
            return twin.eval()

        warn_if_drawn_anew(model, again, lambda one, few: one(few.clone()), images, what)


def _passed(model: nn.Module, images: Tensor) -> Any:
    """What the model returns for the images, with the same random numbers each time."""
    with torch.random.fork_rng(devices=[]):
        return model(images.clone())


def _changed(model: nn.Module, images: Tensor) -> list[str]:
    """The numbers that modules hold as attributes, by name, which a pass changes though one with
    these images came before: no sizes of images, and no modes."""
    before = _numbers(model)
    _passed(model, images)
    after = _numbers(model)
    return [name for name in before | after if before.get(name) != after.get(name)]


def _numbers(model: nn.Module) -> dict[str, str]:
    """Each as text, since NaN is not NaN."""
    return {
        place: repr(value.tolist() if isinstance(value, np.ndarray | np.generic) else value)
        for place, value in _held(model)
        if isinstance(value, int | float | complex | np.ndarray | np.generic)
    }


def _backward(model: nn.Module, *results: Tensor) -> None:
    """A backward pass that keeps no gradients, which would take as much memory as the weights."""
    with ExitStack() as attached:
        for parameter in model.parameters():
            if parameter.requires_grad:
                forget = parameter.register_post_accumulate_grad_hook(_forget_gradient)
                attached.callback(forget.remove)
        torch.stack([result.abs().sum() for result in results]).sum().backward()


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _tell_choice(spec: ModelSpec, mode: str, result: Any, name: str) -> None:
    others = [other for other, part in parts_by_name(result) if other != name and part is not None]
    if others:
        logger.info(
            f"model {spec}: returns {described(result)} in {mode} mode; {name!r} is taken for the "
            "logits, the rest is ignored"
        )


@torch.no_grad()
def warn_if_results_vary(
    run: Callable[[Tensor], Any], images: Tensor, what: str, model: nn.Module
) -> None:
    """Warn if `run`, a forward pass of `model` in eval mode, gives other results for the same
    images each time, or for an image elsewhere in a batch, beside others.

    It takes three `images` to tell the latter.
    """
    first = list(tensors_in(run(images[:2])))  # which may fill what is kept for images of a size
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    again, elsewhere = (list(tensors_in(run(pair))) for pair in (images[:2], images[[-1, 0]]))
    buffers = dict(model.named_buffers())
    if changed := [
        name
        for name, value in before.items()
        if name not in buffers or not _is_same(value, buffers[name])
    ]:
        logger.warning(
            f"{what}: changes {some(changed)} also in eval mode: all values depend on what it has "
            "seen before"
        )
    elif not all(map(nearly_equal, first, again)):
        logger.warning(
            f"{what}: gives other results for the same images each time (dropout that is always "
            "on, or a state that changes?): all values depend on chance"
        )
    elif len(images) > 2 and not all(map(_agree_on_one, first, elsewhere)):
        logger.warning(
            f"{what}: gives results for an image that depend on the batch around it "
            f"({_what_looks_around(model)}): so do all values"
        )


def _agree_on_one(a: Tensor, b: Tensor) -> bool:
    """Whether two results, each for two images, are the same for that which comes first in one and
    last in the other, whichever axis of length 2 counts the images; true of tensors that have no
    such axis, or another shape each."""
    axes = [axis for axis, length in enumerate(a.shape) if length == 2 and a.shape == b.shape]
    # The kernels are the same, so that even rounding hardly differs.
    return not axes or any(
        nearly_equal(a.select(axis, 0), b.select(axis, 1), rtol=1e-5, atol=1e-5) for axis in axes
    )


def _what_looks_around(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return f"batch norm without running statistics: {name}"
    return "attention along the wrong axis, or a mean over images?"


@torch.no_grad()
def warn_if_drawn_anew(
    model: nn.Module,
    build: Callable[[], nn.Module],
    run: Callable[[nn.Module, Tensor], Any],
    images: Tensor,
    what: str,
) -> None:
    """Warn if `model` is another one each time it is built, by tensors that no checkpoint holds:
    if `build`, which gives it with the same weights and in eval mode, gives one whose forward pass,
    `run`, has other results for two `images` once it has seen others of them."""
    names = [name for name, _ in unsaved(model)]
    if not names:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() ^ 1)
        twin = build()
    run(twin, images[1:])
    if not all(
        map(nearly_equal, *(list(tensors_in(run(one, images[:2]))) for one in (model, twin)))
    ):
        logger.warning(
            f"{what}: holds tensors that no checkpoint does ({some(names)}), drawn at random when "
            "it is built, or made of the first images that it sees: all values depend on that; "
            "register them as buffers, and modules of a list by nn.ModuleList"
        )


def unsaved(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors, by name, that modules hold and no checkpoint does: buffers that are not
    persistent, plain attributes, what is in lists, tuples and dicts, and the weights of modules
    there."""
    registered = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    registered |= {id(parameter) for parameter in model.parameters()}
    for name, value in _held(model):
        parts = value.state_dict(keep_vars=True) if isinstance(value, nn.Module) else {"": value}
        for key, tensor in parts.items():
            if isinstance(tensor, Tensor) and id(tensor) not in registered:
                yield f"{name}.{key}" if key else name, tensor


def _held(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The buffers and plain attributes of modules, by name, and what is in those that are lists,
    tuples or dicts in their place."""
    own = vars(nn.Module()).keys()
    for name, module in model.named_modules():
        attributes = {key: value for key, value in vars(module).items() if key not in own}
        for key, value in [*module._buffers.items(), *attributes.items()]:
            yield from _parts_held(f"{name}.{key}" if name else key, value)


def _parts_held(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list | tuple | dict) and depth < MOST_NESTED:
        for key, part in parts_of(value):
            yield from _parts_held(f"{name}[{key}]", part, depth + 1)
    else:
        yield name, value


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and nearly_equal(a, b, rtol=0, atol=0)


@torch.no_grad()
def takes_channels_last(model: nn.Module, images: Tensor) -> bool:
    """Whether a model gives the same results, in eval mode, with the channels of its weights, which
    are laid out so afterwards, and of its images, a few normalized ones (b, channels, height,
    width), last in memory. The layout of images alone changes nothing where they have one channel.

    One that looks at strides, or calls `view` on the output of a convolution, say, does not.
    """
    with evaluating(model):
        expected = list(tensors_in(model(images.clone())))
        try:
            model.to(memory_format=torch.channels_last)
            found = list(tensors_in(model(_channels_last(images))))
        except Exception:  # whatever a model raises that asks for another format
            return False
    return len(found) == len(expected) and all(map(nearly_equal, found, expected))


def put_channels_last(model: nn.Module, images: Tensor) -> bool:
    """Lay out the weights of `model` with the channels last in memory, for training, unless it
    does not take them so, or cannot be trained then; whether that was done.

    The buffers of the model stay as they are; it is in training mode afterwards.
    """
    suits = takes_channels_last(model, images) and _trains(model, images)
    if not suits:
        model.to(memory_format=torch.contiguous_format)
    return suits


def _trains(model: nn.Module, images: Tensor) -> bool:
    """Whether a step of training goes through with the channels last."""
    try:
        with unchanged(model):
            with _Convolutions() as convolutions:
                results = list(tensors_in(model.train()(_channels_last(images))))
            if convolutions.overrun and images.device.type == "cpu":
                return False
            _backward(model, *(result for result in results if result.requires_grad))
    except Exception:  # whatever a model raises that asks for another format
        return False
    return True


class _Convolutions(TorchDispatchMode):
    """Sees, within its block, whether one of the convolutions of a forward pass is `overrun`: with
    the channels last, oneDNN writes beyond its memory on the way back to the weights of a 1x1
    convolution with a stride and fewer than 16 input channels, which ends the process
    (https://github.com/uxlfoundation/oneDNN/issues/6035; PyTorch 2.14.1)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.overrun = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            _, weight, _, strides = args[:4]
            _, inputs, *kernel = weight.shape
            self.overrun |= inputs < 16 and max(kernel) == 1 < max(strides)
        return func(*args, **(kwargs or {}))


def _channels_last(images: Tensor) -> Tensor:
    """A copy, which a model may change."""
    return images.clone(memory_format=torch.channels_last)
