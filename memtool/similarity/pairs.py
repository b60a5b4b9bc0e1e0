"""Which layers of which networks are compared: names and numbers, no activations."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod

from torch import nn

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint, footprints, trace_all
from memtool.layers import Footprint, Layer, select
from memtool.similarity.settings import Pairs
from memtool.tensors import stored_tensors


@dataclass(frozen=True)
class Selection:
    """The layers of a checkpoint that take part, in order of execution.

    `patterns` are the globs that chose them; `footprint` is what a forward pass of the network
    takes; `called` names all layers that the model has.
    """

    checkpoint: Checkpoint
    layers: list[Layer]
    patterns: Sequence[str]
    footprint: Footprint
    called: frozenset[str] = frozenset()

    @cached_property
    def widths(self) -> dict[str, int]:
        """How many features each distinct tensor has, by the name of the layer that stands for it:
        a block and its last ReLU are one tensor, which is computed once."""
        return {layer.same_as: prod(layer.shape) for layer in self.layers}

    @cached_property
    def batch_axes(self) -> dict[str, int]:
        """Which axis of each distinct tensor counts the images."""
        return {layer.same_as: layer.batch_axis or 0 for layer in self.layers}

    @property
    def tensors(self) -> list[str]:
        """The names of the distinct tensors."""
        return list(self.widths)

    @cached_property
    def weights(self) -> int:
        """The bytes that the checkpoint's tensors take in float32."""
        stored = stored_tensors(self.checkpoint.path).values()
        return sum(4 * prod(tensor.shape) for tensor in stored)

    def uncalled(self, model: nn.Module) -> list[str]:
        """The modules that the patterns name and the model never calls."""
        return [
            name
            for name, module in model.named_modules()
            if name not in self.called
            and not isinstance(module, nn.ModuleList | nn.ModuleDict)  # have nothing to call
            and any(name and (p == "all" or fnmatchcase(name, p)) for p in self.patterns)
        ]


def selections(
    checkpoints: Sequence[Checkpoint],
    patterns: Sequence[str],
    reference_patterns: Sequence[str] | None = None,
) -> list[Selection]:
    """The layers of each checkpoint that match `patterns`; of the last one, the reference, those
    that match `reference_patterns`, if there are any.

    Raises MemtoolError for a pattern that matches no layer of one of them.
    """
    wanted = [patterns] * (len(checkpoints) - 1) + [reference_patterns or patterns]
    return [
        Selection(
            checkpoint,
            select(layers, globs, str(checkpoint.path)),
            globs,
            footprint,
            frozenset(layer.name for layer in layers),
        )
        for checkpoint, layers, globs, footprint in zip(
            checkpoints, trace_all(checkpoints), wanted, footprints(checkpoints), strict=True
        )
    ]


# The names of two distinct tensors, of a checkpoint and of the reference.
TensorPair = tuple[str, str]


@dataclass(frozen=True)
class Comparison:
    """A checkpoint's layers and those of the reference that each is compared with.

    `layers` has one pair for each row of the table. HSIC is computed once for each of `tensors`,
    the distinct pairs of tensors; those in `in_feature_space` by covariances, the others by Gram
    matrices.
    """

    selection: Selection
    layers: list[tuple[Layer, Layer]]
    in_feature_space: frozenset[TensorPair] = frozenset()

    @cached_property
    def tensors(self) -> list[TensorPair]:
        pairs = ((layer.same_as, other.same_as) for layer, other in self.layers)
        return list(dict.fromkeys(pairs))

    def computed(self, in_feature_space: bool) -> list[TensorPair]:
        """The pairs of tensors that are computed in feature space, or those that are not."""
        return [
            pair for pair in self.tensors if (pair in self.in_feature_space) is in_feature_space
        ]


def compared(selection: Selection, reference: Selection, pairs: Pairs) -> Comparison:
    """Which layers of a checkpoint are compared with which of the reference.

    With Pairs.same, each with its corresponding layer: the one of the same name. The parts of a
    stitched model are named `front.` and `back.`; a layer of either corresponds to the layer that
    is called so without. Where the reference's layers were chosen by patterns of their own, the
    k-th corresponds to the k-th. Raises MemtoolError if no layers correspond.
    """
    if pairs is Pairs.all:
        layers = [(layer, other) for layer in selection.layers for other in reference.layers]
    elif selection.patterns != reference.patterns:
        layers = _in_order(selection, reference)
    else:
        layers = _by_name(selection, reference)
    return Comparison(selection, layers)


ALL = "compare each with each: --pairs all"


def _in_order(selection: Selection, reference: Selection) -> list[tuple[Layer, Layer]]:
    if len(selection.layers) != len(reference.layers):
        raise MemtoolError(
            f"{selection.checkpoint.path}: {len(selection.layers)} layers chosen, but "
            f"{len(reference.layers)} of {reference.checkpoint.path}; the same number makes pairs, "
            f"else {ALL}"
        )
    return list(zip(selection.layers, reference.layers, strict=True))


def _by_name(selection: Selection, reference: Selection) -> list[tuple[Layer, Layer]]:
    exact = {layer.name: layer for layer in reference.layers}
    bare = {_bare(layer.name): layer for layer in reference.layers}
    pairs = [
        (layer, other)
        for layer in selection.layers
        if (other := exact.get(layer.name) or bare.get(_bare(layer.name)))
    ]
    if not pairs:
        raise MemtoolError(
            f"{selection.checkpoint.path}: none of its layers corresponds to one of "
            f"{reference.checkpoint.path}; {ALL}"
        )
    return pairs


def _bare(name: str) -> str:
    for part in ("front.", "back."):
        name = name.removeprefix(part)
    return name
