"""Which layers of which networks are compared: names and numbers, no activations."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from torch import Tensor

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint, footprints, trace_all
from memtool.layers import Footprint, Layer, select
from memtool.models import ModelSpec
from memtool.similarity.settings import Pairs, Route
from memtool.specs import PARTS, LayerName, corresponding
from memtool.tensors import stored_tensors


@dataclass(frozen=True, eq=False)
class Selection:
    """The layers of a checkpoint that take part, in order of execution; a network of its own, equal
    to itself alone.

    `patterns` are the globs that chose them; `footprint` is what a forward pass of the network
    takes.
    """

    checkpoint: Checkpoint
    layers: list[Layer]
    patterns: Sequence[str]
    footprint: Footprint

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape that each distinct tensor has for one image, by the name of the layer that
        stands for it: a block and its last ReLU are one tensor, which is computed once."""
        return {layer.same_as: layer.shape for layer in self.layers}

    @cached_property
    def widths(self) -> dict[str, int]:
        """How many features each distinct tensor has."""
        return {name: prod(shape) for name, shape in self.shapes.items()}

    @cached_property
    def batch_axes(self) -> dict[str, int]:
        """Which axis of each distinct tensor counts the images."""
        return {layer.same_as: layer.batch_axis or 0 for layer in self.layers}

    def rows(self, name: str, activation: Tensor, n: int) -> Tensor | None:
        """The activation of a distinct tensor for n images as (n, ...); None if it has another
        shape, as that of a module has which sees some of the images, or parts of them."""
        rows = activation.movedim(self.batch_axes[name], 0)
        return rows if rows.shape == (n, *self.shapes[name]) else None

    @property
    def tensors(self) -> list[str]:
        """The names of the distinct tensors."""
        return list(self.widths)

    @cached_property
    def weights(self) -> int:
        """The bytes that the checkpoint's tensors take in float32."""
        stored = stored_tensors(self.checkpoint.path).values()
        return sum(4 * prod(tensor.shape) for tensor in stored)


def selections(
    checkpoints: Sequence[Checkpoint],
    references: Sequence[Checkpoint],
    patterns: Sequence[str],
    reference_patterns: Sequence[str] = (),
) -> tuple[list[Selection], list[Selection]]:
    """The layers of each checkpoint that match `patterns`, and those of each reference that match
    `reference_patterns`, if there are any, else `patterns`.

    A file that occurs several times, with the same patterns, is one selection. Patterns match the
    layers of a stitched model without `front.` and `back.` too. Raises MemtoolError for a pattern
    that matches no layer of one of the checkpoints.
    """
    globs = [patterns] * len(checkpoints) + [reference_patterns or patterns] * len(references)
    wanted = list(zip([*checkpoints, *references], globs, strict=True))
    keys = [(one.path, str(one.spec), tuple(chosen)) for one, chosen in wanted]
    distinct = dict(zip(keys, wanted, strict=True))
    opened = [checkpoint for checkpoint, _ in distinct.values()]
    found = {
        key: Selection(
            checkpoint,
            select(trace.named, chosen, str(checkpoint.path), _prefixes(checkpoint)),
            chosen,
            footprint,
        )
        for (key, (checkpoint, chosen)), trace, footprint in zip(
            distinct.items(), trace_all(opened), footprints(opened), strict=True
        )
    }
    every = [found[key] for key in keys]
    return every[: len(checkpoints)], list(dict.fromkeys(every[len(checkpoints) :]))


# The names of two distinct tensors, of a checkpoint and of a reference.
TensorPair = tuple[str, str]


@dataclass(frozen=True)
class Comparison:
    """A checkpoint's layers and those of a reference that each is compared with.

    `layers` has one pair for each row of the table. HSIC is computed once for each of `tensors`,
    the distinct pairs of tensors; those in `in_feature_space` by covariances, the others by Gram
    matrices.
    """

    selection: Selection
    reference: Selection
    layers: list[tuple[Layer, Layer]]
    in_feature_space: frozenset[TensorPair] = frozenset()

    @cached_property
    def tensors(self) -> list[TensorPair]:
        pairs = ((layer.same_as, other.same_as) for layer, other in self.layers)
        return list(dict.fromkeys(pairs))

    def route(self, pair: TensorPair) -> Route:
        """By what HSIC of a pair is computed."""
        return Route.covariance if pair in self.in_feature_space else Route.gram

    def pairs(self, route: Route) -> list[TensorPair]:
        """The pairs of tensors whose HSIC is computed by this route."""
        return [pair for pair in self.tensors if self.route(pair) is route]


def networks_of(comparisons: Iterable[Comparison]) -> list[Selection]:
    """The distinct networks that are compared, those that are references first."""
    comparisons = list(comparisons)
    references = [one.reference for one in comparisons]
    return list(dict.fromkeys([*references, *(one.selection for one in comparisons)]))


def tensors_of(comparisons: Sequence[Comparison], route: Route) -> dict[Selection, list[str]]:
    """The names of the distinct tensors of each network that are computed by this route."""
    found: dict[Selection, dict[str, None]] = {one: {} for one in networks_of(comparisons)}
    for one in comparisons:
        for mine, theirs in one.pairs(route):
            found[one.selection][mine] = found[one.reference][theirs] = None
    return {network: list(names) for network, names in found.items()}


def compared(selection: Selection, reference: Selection, pairs: Pairs) -> Comparison:
    """Which layers of a checkpoint are compared with which of a reference.

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
    return Comparison(selection, reference, layers)


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
    names = (
        [_names(layer.name, one.checkpoint.spec) for layer in one.layers]
        for one in (selection, reference)
    )
    pairs = corresponding(*names)
    if not pairs:
        raise MemtoolError(
            f"{selection.checkpoint.path}: none of its layers corresponds to one of "
            f"{reference.checkpoint.path}; {ALL}"
        )
    return [(selection.layers[i], reference.layers[j]) for i, j in pairs]


def _names(layer: str, spec: ModelSpec) -> list[LayerName]:
    """What a layer is called in its network and, if that is stitched, in the part that it is of."""
    names = [(layer, spec.is_stitched)]
    if spec.is_stitched and layer.startswith(PARTS):
        part, _, inner = layer.partition(".")
        front, back = spec.parts
        names += _names(inner, front if part == "front" else back)
    return names


def _prefixes(checkpoint: Checkpoint) -> Sequence[str]:
    """What the names of a network's layers begin with that patterns may leave out."""
    return PARTS if checkpoint.spec.is_stitched else ()
