"""What only the networks themselves can tell before the work: which cuts hold, which classes they
know. Each network is loaded and runs on a few images."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint, Network
from memtool.layers import Back, run_to, told_names
from memtool.models import foreign_code, nearly_equal
from memtool.stitching.cuts import ChosenCut, not_a_cut
from memtool.stitching.planning import Cut
from memtool.stitching.settings import Direction

logger = logging.getLogger("memtool")


def verified_cuts(
    fronts: Sequence[Checkpoint],
    back: Checkpoint,
    chosen: Mapping[Path, Sequence[ChosenCut]],
    directions: Sequence[Direction],
    images: Tensor,
    classes: int,
) -> dict[Path, list[Cut]]:
    """The cuts of each front with the back that hold for the networks as they are, by the front's
    path; `images`, uint8 (3, c, h, w), are any few that differ.

    The graph of a forward pass does not show everything: a branch may depend on the weights, or
    data take a way that no tensor shows. A cut that does not hold is left out with a note, unless
    it was named. Raises MemtoolError then, if no cut of a front is left, and if a network that is
    to give a back does not tell so many classes apart.
    """
    resumes_front = set(directions) != {Direction.forward}
    theirs = [cut.layers[1].name for own in chosen.values() for cut in own]
    false_theirs = _checked(back, theirs, images, classes, gives_back=True)
    verified = {}
    for front in fronts:
        own = chosen[front.path]
        ours = [cut.layers[0].name for cut in own] if resumes_front else []
        false_ours = _checked(front, ours, images, classes, gives_back=resumes_front)
        for cut in own:
            f, b = (layer.name for layer in cut.layers)
            if cut.is_named and f in false_ours:
                raise not_a_cut(front.path, f, false_ours[f])
            if cut.is_named and b in false_theirs:
                raise not_a_cut(back.path, b, false_theirs[b])
        verified[front.path] = [
            cut.layers
            for cut in own
            if cut.layers[0].name not in false_ours and cut.layers[1].name not in false_theirs
        ]
        if not verified[front.path]:
            raise MemtoolError(f"{front.path}: none of its cuts with {back.path} holds")
    return verified


def _checked(
    checkpoint: Checkpoint,
    layers: Iterable[str],
    images: Tensor,
    classes: int,
    gives_back: bool,
) -> dict[str, str | None]:
    """Which of the layers are no cuts, each with the innermost block around it that is one."""
    network = checkpoint.network(images.device)
    with foreign_code(checkpoint.told):
        checkpoint.warn_of_other_influences(network, images)
        _check_classes(checkpoint, network, images, classes, gives_back)
        found = {
            layer: _block_around(network, layer, images)
            for layer in dict.fromkeys(layers)
            if not is_cut(network, layer, images)
        }
    if found:
        logger.info(
            f"{checkpoint.path}: {told_names(list(found))} left out: what comes after depends on "
            "the input in other ways too, as the network itself shows"
        )
    return found


def _check_classes(
    checkpoint: Checkpoint, network: Network, images: Tensor, classes: int, gives_back: bool
) -> None:
    found = network.width(images)
    if found == classes:
        return
    told = f"{checkpoint.path}: gives {found} logits, the data set has {classes} classes"
    if gives_back:
        raise MemtoolError(
            f"{told}; name the data set that it was trained on (--data), or let it give its front "
            "alone (without --both and --control)"
        )
    logger.info(f"{told}: its own accuracy is left empty")


def _block_around(network: Network, layer: str, images: Tensor) -> str | None:
    """The innermost block around a layer that is a cut; None if none is."""
    names = layer.split(".")
    blocks = [".".join(names[:length]) for length in range(len(names) - 1, 0, -1)]
    modules = {name for name, _ in network.model.named_modules()}
    return next(
        (block for block in blocks if block in modules and is_cut(network, block, images)), None
    )


@torch.no_grad()
def is_cut(network: Network, layer: str, images: Tensor) -> bool:
    """Whether the network, given one activation at `layer`, returns the same whatever its input."""
    others = 1 - images if images.is_floating_point() else ~images
    given, other = network.normalized(images), network.normalized(others)
    try:
        activation = run_to(network.model, [layer], given)[layer]
        rest = Back(network.model, layer)
        # Copies, because what follows may change them in place.
        first, second = (
            network.logits_in(rest(activation.clone(), inputs)) for inputs in (given, other)
        )
    except MemtoolError:  # a container that is never called itself
        return False
    # Convolutions on a GPU need not repeat themselves to the last bit.
    return nearly_equal(first, second, rtol=1e-5, atol=1e-6)
