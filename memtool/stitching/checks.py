"""What only the networks themselves can tell before the work: which cuts hold, which classes they
know. Each network is loaded and runs on some images."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint, Network
from memtool.errors import is_lack_of_memory, one_line, told_names
from memtool.layers import Back, misplaced, observed, run_to
from memtool.models import foreign_code, nearly_equal
from memtool.stitching.cuts import ChosenCut, not_a_cut
from memtool.stitching.settings import Direction

logger = logging.getLogger("memtool")

TRIED = 64  # images: what a network does with one in ten of them is seen in 999 of 1,000 tries
UNREACHED = (
    "no gradient reaches it, since what comes after computes it anew (gradient checkpointing) or "
    "switches it off"
)


def verified_cuts(
    fronts: Sequence[Checkpoint],
    back: Checkpoint,
    chosen: Mapping[Path, Sequence[ChosenCut]],
    directions: Sequence[Direction],
    images: Tensor,
    batches: Mapping[Path, int],
    classes: int,
    trains: bool,
) -> dict[Path, list[ChosenCut]]:
    """The cuts of each front with the back that hold for the networks as they are, by the front's
    path; `images`, uint8 (n, c, h, w), are any that differ, four at least; TRIED tell enough.
    `batches` says, by the network's path, how many images it will be given at once, at most.

    The graph of a forward pass does not show everything: a branch may depend on the weights or the
    images, data take a way that no tensor shows, images be sorted, or mixed, before a layer sees
    them. If a stitching layer `trains`, gradients have to reach it, too. A cut that does not hold
    is left out with a note, unless it was named. Raises MemtoolError then, if no cut of a front is
    left, if a network that is to give a back does not tell so many classes apart, if one draws at
    random, and if a forward pass that ends at a layer changes what the next one gives.
    """
    resumes_front = set(directions) != {Direction.forward}
    theirs = [cut.layers[1].name for own in chosen.values() for cut in own]
    false_theirs = _checked(back, theirs, images, batches[back.path], classes, True, trains)
    verified = {}
    for front in fronts:
        own = chosen[front.path]
        ours = [cut.layers[0].name for cut in own]
        batch = batches[front.path]
        false_ours = _checked(front, ours, images, batch, classes, resumes_front, trains)
        for cut in own:
            f, b = (layer.name for layer in cut.layers)
            if cut.is_named and f in false_ours:
                raise false_ours[f]
            if cut.is_named and b in false_theirs:
                raise false_theirs[b]
        verified[front.path] = [
            cut
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
    batch: int,
    classes: int,
    gives_back: bool,
    trains: bool,
) -> dict[str, MemtoolError]:
    """Which of the layers are no cuts, each with the error that says why. If the network gives no
    back, the rows of the images alone matter."""
    network = checkpoint.network(images.device)
    with foreign_code(checkpoint.told):
        checkpoint.warn_of_other_influences(network, images[:3])
        _check_classes(checkpoint, network, images, classes, gives_back)
        axes = dict.fromkeys(layers, 0)
        another_order, mixed, uneven = misplaced(network.model, network.run, axes, images)
        uneven |= _uneven_at(checkpoint, network, axes, images, batch)
        logits, again = (_logits(network, images) for _ in range(2))
        if not _same(again, logits):
            raise _is_random(checkpoint.path)
        even = [one for one in axes if one not in uneven]
        leaking = [one for one in even if gives_back and not is_cut(network, one, images, logits)]
        blocks = {layer: _block_around(network, layer, images, logits) for layer in leaking}
        if not _same(_logits(network, images), logits):
            raise _keeps_state(checkpoint.path)
        behind = [one for one in even if gives_back and trains and one not in leaking]
        reasons = {one: why_unreached(network, one, images[:3]) for one in behind}
        unreached = {layer: why for layer, why in reasons.items() if why}
    _tell(checkpoint, leaking, "what comes after depends on the input in other ways too")
    for why in dict.fromkeys(unreached.values()):
        alike = [layer for layer in unreached if unreached[layer] == why]
        _tell(checkpoint, alike, f"{why} (--epochs 0 trains nothing)")
    _tell(checkpoint, sorted(another_order), "they give the images in another order")
    _tell(checkpoint, sorted(mixed), "they depend on the other images of a batch")
    _tell(checkpoint, sorted(uneven), "they do not give one row for each image")
    return {
        **{layer: not_a_cut(checkpoint.path, layer, blocks[layer]) for layer in leaking},
        **{layer: _unreached(checkpoint.path, layer, why) for layer, why in unreached.items()},
        **{layer: _in_another_order(checkpoint.path, layer) for layer in another_order},
        **{layer: _mixed(checkpoint.path, layer) for layer in mixed},
        **{layer: _uneven(checkpoint.path, layer) for layer in uneven},
    }


@torch.no_grad()
def _uneven_at(
    checkpoint: Checkpoint, network: Network, layers: Iterable[str], images: Tensor, batch: int
) -> set[str]:
    """Which of the layers do not give so many rows for a `batch`: they may see a hundred at a time.
    Tried on the meta device, which computes nothing; or, if that is little work or the model does
    not run there, with the images over and over."""
    uneven: set[str] = set()

    def see(name: str, activation: Tensor) -> None:
        if activation.shape[:1] != (batch,):
            uneven.add(name)

    if not checkpoint.is_small(checkpoint.image_shape, batch):
        with suppress(Exception):  # whatever a model raises that needs real tensors
            model = checkpoint.skeleton().to("meta").eval()
            with observed(model, layers, see):
                model(torch.zeros(batch, *checkpoint.image_shape, device="meta"))
            return uneven
    uneven.clear()
    with observed(network.model, layers, see):
        network.run(images[torch.arange(batch) % len(images)])
    return uneven


@torch.no_grad()
def _logits(network: Network, images: Tensor) -> Tensor:
    return network(images)


def _same(logits: Tensor, expected: Tensor) -> bool:
    """Whether they are, but for roundings: convolutions on a GPU need not repeat themselves to the
    last bit."""
    return nearly_equal(logits, expected, rtol=1e-5, atol=1e-6)


def _tell(checkpoint: Checkpoint, layers: Sequence[str], why: str) -> None:
    if layers:
        told = told_names(layers)
        logger.info(f"{checkpoint.path}: {told} left out: {why}, as the network itself shows")


def _in_another_order(path: Path, layer: str) -> MemtoolError:
    return MemtoolError(
        f"{path}: {layer!r} gives the images in another order than it gets them, so that no other "
        f"network can go on from it; take another cut (list them: memtool info --layers {path})"
    )


def _mixed(path: Path, layer: str) -> MemtoolError:
    return MemtoolError(
        f"{path}: {layer!r} depends on the other images of a batch, so that nothing can be kept of "
        f"it for each image; take another cut (list them: memtool info --layers {path})"
    )


def _uneven(path: Path, layer: str) -> MemtoolError:
    return MemtoolError(
        f"{path}: {layer!r} does not give one row for each image, so that nothing can be stitched "
        f"there; take another cut (list them: memtool info --layers {path})"
    )


def _unreached(path: Path, layer: str, why: str) -> MemtoolError:
    return MemtoolError(
        f"{path}: a stitching layer at {layer!r} cannot be trained: {why}; take another cut, "
        "or train none (--epochs 0)"
    )


def _is_random(path: Path) -> MemtoolError:
    return MemtoolError(
        f"{path}: has other results each time, so that none of its cuts can be found; let its "
        "model draw nothing in eval mode, as functional.dropout(x, training=self.training) does, "
        "and keep nothing of one forward pass for the next"
    )


def _keeps_state(path: Path) -> MemtoolError:
    return MemtoolError(
        f"{path}: its model gives other results after a forward pass that ended at a layer, as if "
        "it undid at its end what it changed in itself; such a network cannot be stitched"
    )


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


def _block_around(network: Network, layer: str, images: Tensor, logits: Tensor) -> str | None:
    """The innermost block around a layer that is a cut; None if none is."""
    names = layer.split(".")
    blocks = [".".join(names[:length]) for length in range(len(names) - 1, 0, -1)]
    modules = {name for name, _ in network.model.named_modules()}
    inner = (block for block in blocks if block in modules)
    return next((block for block in inner if is_cut(network, block, images, logits)), None)


@torch.no_grad()
def is_cut(network: Network, layer: str, images: Tensor, logits: Tensor) -> bool:
    """Whether the network, given its own activation at `layer`, returns the `logits` that the
    images have, whatever its input: that fails, too, where a tensor that shares the layer's memory
    is changed in place later on."""
    # Where each pixel has values that it has in some image: a network may take codes, which differ
    # between features. The sum of uint8 may overflow, and the difference comes back.
    others = images.amin(0) + images.amax(0) - images
    given, other = network.normalized(images), network.normalized(others)
    try:
        with foreign_code(layer):
            activation = run_to(network.model, [layer], given)[layer]
            # A copy, because what follows may change it in place.
            found = network.logits_in(Back(network.model, layer)(activation.clone(), other))
    except MemtoolError:  # a container that is never called itself, or more hangs on the layer
        return False
    return _same(found, logits)


def why_unreached(network: Network, layer: str, images: Tensor) -> str | None:
    """Why no gradient of the logits reaches an activation that takes the place of the layer's; None
    if one does."""
    given = network.normalized(images)
    try:
        with torch.enable_grad():
            activation = run_to(network.model, [layer], given.clone())[layer].detach()
            activation.requires_grad_()
            # Times 1, since what follows may change it in place, as a leaf cannot be.
            result = Back(network.model, layer)(activation * 1, given)
            logits = network.logits_in(result)
            if logits.requires_grad:
                logits.sum().backward()
    except Exception as error:  # whatever the model raises, or PyTorch on the way back
        if is_lack_of_memory(error):
            raise
        return f"no gradient reaches it ({one_line(error)})"
    return UNREACHED if activation.grad is None else None
