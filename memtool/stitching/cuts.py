"""Cuts: where a network can be cut in two, and which cut of one network meets which of another."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint, Network, trace_all
from memtool.layers import Back, Layer, run_to, select
from memtool.stitching.planning import Cut


def all_cuts(
    fronts: Sequence[Checkpoint], back: Checkpoint, at: Sequence[str]
) -> dict[Path, list[Cut]]:
    """The cuts of each front with the back, by the front's path.

    Raises MemtoolError if a front does not take the images that the back takes.
    """
    for front in fronts:
        if front.image_shape != back.image_shape:
            raise MemtoolError(
                f"{front.path}: takes images of (channels, height, width) = {front.image_shape}, "
                f"but {back.path} takes {back.image_shape}; stitch networks for images of one size"
            )
    *ours, theirs = trace_all([*fronts, back])
    return {
        front.path: matching_cuts(layers, theirs, at, str(front.path), str(back.path))
        for front, layers in zip(fronts, ours, strict=True)
    }


def matching_cuts(
    front: Sequence[Layer], back: Sequence[Layer], at: Sequence[str], name: str, back_name: str
) -> list[Cut]:
    """The cuts that match `at`: globs on the front's layers, or FRONT=BACK for other names there.

    A layer is met under its outermost name alone. Raises MemtoolError for a layer that is no cut,
    naming the innermost block around it that is one; `name` and `back_name` say whose layers they
    are.
    """
    chosen = []
    for pattern in at:
        ours, equals, theirs = pattern.partition("=")
        for layer in _matching(front, ours, name):
            other = theirs if equals else layer.name
            if not equals and other not in {layer.name for layer in back}:
                raise MemtoolError(
                    f"{back_name}: has no layer {other!r}; say which of its layers goes with that "
                    f"of {name}: --at {other}=BACK_LAYER "
                    f"(list them: memtool info --layers {back_name})"
                )
            chosen.append((layer, _matching(back, other, back_name)[0]))
    order = {layer.name: number for number, layer in enumerate(front)}
    return sorted(dict.fromkeys(chosen), key=lambda cut: order[cut[0].name])


def _matching(layers: Sequence[Layer], pattern: str, name: str) -> list[Layer]:
    found = select(layers, [pattern], name)
    if [layer.name for layer in found] == [pattern] and not found[0].is_cut:
        around = [
            block.name for block in layers if block.is_cut and pattern.startswith(f"{block.name}.")
        ]
        raise _no_cut(name, pattern, around[0] if around else None)
    result = [
        layer
        for layer in found
        if layer.is_cut and (layer.name == pattern or layer.same_as == layer.name)
    ]
    if not result:
        raise MemtoolError(
            f"{name}: no layer that matches {pattern!r} is a cut "
            f"(list them: memtool info --layers {name})"
        )
    return result


def _no_cut(name: str, layer: str, block: str | None) -> MemtoolError:
    hint = f"the block around it, {block!r}, is" if block else "nor is a block around it"
    return MemtoolError(
        f"{name}: {layer!r} is not a cut, what comes after it depends on the input in other ways "
        f"too; {hint} (list them: memtool info --layers {name})"
    )


def check(network: Network, layer: str, images: Tensor, name: str) -> None:
    """Raise MemtoolError unless `layer` is a cut of `network` as it is, naming the innermost block
    around it that is one; `images`, uint8 (n, c, h, w), are any two, `name` says whose layer it is.

    The weights matter: what `trace` finds on fresh ones may differ from what a branch that depends
    on its input does.
    """
    if _is_cut(network, layer, images):
        return
    names = layer.split(".")
    blocks = [".".join(names[:length]) for length in range(len(names) - 1, 0, -1)]
    called = {name for name, module in network.model.named_modules()}
    around = (block for block in blocks if block in called and _is_cut(network, block, images))
    raise _no_cut(name, layer, next(around, None))


@torch.no_grad()
def _is_cut(network: Network, layer: str, images: Tensor) -> bool:
    """Whether one activation at `layer` gives the same output whatever the input was."""
    given, other = network.normalized(images), network.normalized(~images)
    try:
        activation = run_to(network.model, [layer], given)[layer]
        first, second = (  # copies, because what follows may change them in place
            Back(network.model, layer)(activation.clone(), inputs) for inputs in (given, other)
        )
    except MemtoolError:  # a container that is never called itself
        return False
    # Convolutions on a GPU need not repeat themselves to the last bit.
    return torch.allclose(first, second, rtol=1e-5, atol=1e-6 * float(first.abs().max()))
