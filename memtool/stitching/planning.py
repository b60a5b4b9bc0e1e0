"""What a sweep does at each cut, and whether it can: settings, connectors, directions."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch

from memtool import MemtoolError
from memtool.device import MEMORY
from memtool.errors import told_size
from memtool.layers import Layer
from memtool.models import Connector, StitchingLayer
from memtool.models.stitched import flattens, positions
from memtool.stitching.cuts import ChosenCut, Cut, NoCut, leave_out
from memtool.stitching.settings import Direction, Init
from memtool.training import TrainConfig

T = TypeVar("T")

# Training keeps a weight, its gradient and Adam's two moments, in float32.
BYTES_PER_WEIGHT = 16
MOST_AXES = 4  # of an example's activation: channels, and positions in up to three dimensions


class Unstitchable(NoCut):
    """Two layers that no stitching layer joins. The message names them and has a `detail` of theirs
    before the reason."""

    def __init__(self, front: Layer, back: Layer, reason: str, detail: str = "") -> None:
        super().__init__(
            f"cannot stitch {front.name!r} of shape {front.shape} to {back.name!r} of shape "
            f"{back.shape}: {detail}{reason}",
            reason,
        )


@dataclass(frozen=True)
class StitchSettings:
    """What is done at each cut: the directions, the stitching layer, its initialization and its
    training.

    `memory`, in bytes, is what both networks may take, half of it each, for activations that are
    kept and for forward passes; a flattened stitching layer may take as much while it is fitted.
    With `curve` there is a row for every epoch, and for epoch 0, the initialization; else for the
    last one alone.
    """

    directions: tuple[Direction, ...]
    config: TrainConfig
    connector: Connector = Connector.auto
    init: Init = Init.lstsq
    batch_norm: bool = False
    resize: bool = False
    memory: int = MEMORY
    curve: bool = False

    @property
    def has_weights(self) -> bool:
        """Whether the stitching layer has weights, which are initialized and may be trained."""
        return self.connector is not Connector.none

    @property
    def epochs(self) -> int:
        return self.config.epochs if self.has_weights else 0

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return self.epochs > 0

    @property
    def rows_per_cut(self) -> int:
        return len(self.directions) * (self.epochs + 1 if self.curve else 1)

    def steps(self, examples: int) -> int:
        """The steps of one stitching: those of its training on so many examples, and its test."""
        return self.epochs * self.config.steps_per_epoch(examples) + 1

    def layer(self, cut: Cut) -> StitchingLayer:
        """The stitching layer at a cut, as torch initializes it.

        Raises Unstitchable if the two layers cannot be connected so, or if the map has no such
        initialization.
        """
        front, back = cut
        connector = connector_between(front, back, self.connector, self.resize, self.memory)
        axes = channel_axes(front, back)
        layer = StitchingLayer(connector, front.shape, back.shape, self.batch_norm, axes)
        if self.has_weights and self.init is Init.identity:
            inputs, outputs = layer.size
            if inputs != outputs:
                raise Unstitchable(
                    front,
                    back,
                    "an identity needs equal numbers of channels; use --init lstsq or random",
                    f"no identity from the {inputs} channels of {front.name!r} to the {outputs} of "
                    f"{back.name!r}: ",
                )
        return layer

    def check(self, cuts: Iterable[Cut]) -> None:
        """Raise Unstitchable unless there is a stitching layer for all cuts in all directions."""
        with torch.device("meta"):
            for cut in dict.fromkeys(cuts):
                for direction in self.directions:
                    self.layer(directed(direction, (None, None), cut)[1])

    def joined(self, chosen: Sequence[ChosenCut], path: Path) -> list[Cut]:
        """The cuts, of the front in the file `path`, for which there is a stitching layer in all
        directions. Those for which there is none are left out, with a note for each reason, unless
        they were named. Raises Unstitchable then, and if no cut is left, as `layer` does."""
        found, refused = list[Cut](), dict[str, MemtoolError]()
        for cut in chosen:
            try:
                self.check([cut.layers])
                found.append(cut.layers)
            except Unstitchable as error:
                if cut.is_named:
                    raise
                refused[cut.layers[0].name] = error
        leave_out(path, refused, found)
        return found

    def json(self) -> dict[str, object]:
        """All settings, those of training among them, as JSON holds them."""
        content = {**asdict(self), **self.config.recorded()}
        del content["config"]
        return dict(json.loads(json.dumps(content)))


def directed(direction: Direction, networks: tuple[T, T], cut: Cut) -> tuple[tuple[T, T], Cut]:
    """Which of two networks (named as front, named as back) gives its front and which its back in
    this direction, and the cut between them."""
    (front, back), (f, b) = networks, cut
    match direction:
        case Direction.forward:
            return (front, back), (f, b)
        case Direction.reverse:
            return (back, front), (b, f)
        case Direction.control:
            return (front, front), (f, f)


def connector_between(
    front: Layer, back: Layer, wanted: Connector, resize: bool, memory: int
) -> Connector:
    """The connector between two layers, if `wanted`: `auto` becomes `conv1x1` or `linear`.

    Raises Unstitchable where there is none: if positions differ in number without `resize`, if
    channels differ in number with nothing to map them, if it is unclear which axis they are, if
    there is a map and values are not real numbers, and if a flattened map would take more than
    `memory` bytes.
    """
    a, b = front.shape, back.shape
    rank = max(len(a), len(b))
    _check_types(front, back, wanted)
    if wanted is Connector.none and a == b:
        return wanted  # as they are, whatever their axes count
    chosen = wanted
    if wanted is Connector.auto:
        chosen = Connector.conv1x1 if rank >= 3 else Connector.linear
    if flattens(chosen, a, b) and (wanted is Connector.linear or not rank):
        _check_memory(front, back, memory)
        return chosen
    if len(a) != len(b) or not 1 <= rank <= MOST_AXES:
        why = "no map of channels joins such shapes; use --connector linear, which flattens them"
        raise Unstitchable(front, back, why)
    if chosen is Connector.conv1x1 and rank < 3:
        why = "a 1x1 convolution needs positions; use --connector linear"
        raise Unstitchable(front, back, why)
    axes = channel_axes(front, back)
    if axes is None:
        raise Unstitchable(
            front,
            back,
            "which axis counts the channels is unclear; use --connector linear, which flattens "
            "them, or another cut",
        )
    if chosen is Connector.none and a[axes[0]] != b[axes[1]]:
        why = "nothing maps the channels, which differ in number; use --connector auto"
        raise Unstitchable(front, back, why)
    if positions(a, axes[0]) != positions(b, axes[1]) and not resize:
        raise Unstitchable(
            front,
            back,
            "the positions differ in number; --resize interpolates, or cut where the sizes agree "
            "(--at FRONT_LAYER=BACK_LAYER)",
        )
    return chosen


def _check_types(front: Layer, back: Layer, wanted: Connector) -> None:
    if wanted is Connector.none and front.dtype == back.dtype:
        return
    for layer in (front, back):
        if not layer.dtype.is_floating_point:
            way_out = "only --connector none joins these"
            if front.dtype != back.dtype:
                way_out = f"nothing joins {front.dtype} to {back.dtype}"
            raise Unstitchable(
                front,
                back,
                f"no real numbers; {way_out} (other cuts: --at)",
                f"the values of {layer.name!r} are {layer.dtype}, ",
            )


def channel_axes(front: Layer, back: Layer) -> tuple[int, int] | None:
    """Which axis of either layer's shape counts channels; None if that is unclear of one."""
    if front.channel_axis is None or back.channel_axis is None:
        return None
    return front.channel_axis, back.channel_axis


def _check_memory(front: Layer, back: Layer, memory: int) -> None:
    inputs, outputs = math.prod(front.shape), math.prod(back.shape)
    normal_equations = 8 * inputs * (2 * inputs + 2 * outputs)
    needed = max(BYTES_PER_WEIGHT * inputs * outputs, normal_equations)
    if needed > memory:
        raise Unstitchable(
            front,
            back,
            "a flattened map is too large; use --connector conv1x1, a later cut, or a larger "
            "--memory",
            f"with {inputs * outputs:,} weights, which take {told_size(needed)} to fit, ",
        )
