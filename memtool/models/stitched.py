"""The network made of two others: the front of one, a stitching layer, and the back of another.

Both networks stay frozen and in eval mode, batch-norm buffers included; the stitching layer alone
is trained (Lenc and Vedaldi 2015; Bansal et al. 2021). A stitched model is a model like any other:
its spec holds the specs of both parts.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from memtool import MemtoolError
from memtool.layers import Back, axes_in_memory, run_to
from memtool.models.spec import STITCHED, Connector, ModelSpec

Batches = Callable[[], Iterable[Tensor]]
Shape = tuple[int, ...]  # of one example's activation: (), (d,), (t, d), (c, h, w) or (h, w, c)


def usual_channel_axis(shape: Shape) -> int:
    """Which axis of an activation's shape usually counts channels, where nothing else is recorded.

    The last one of vectors and tokens, the first one of volumes and of maps, unless the other two
    alone are equal: most maps are square, and some networks have the channels last.

    >>> usual_channel_axis((128,)), usual_channel_axis((16, 64)), usual_channel_axis((64, 7, 7))
    (0, 1, 0)
    >>> usual_channel_axis((7, 7, 64))
    2
    """
    if len(shape) > 3 or (len(shape) == 3 and not shape[0] == shape[1] != shape[2]):
        return 0
    return len(shape) - 1


def positions(shape: Shape, channel_axis: int) -> Shape:
    """A shape without its channels: () for vectors, (t,) for tokens, (h, w) for maps."""
    return shape[:channel_axis] + shape[channel_axis + 1 :]


def flattens(connector: Connector, front: Shape, back: Shape) -> bool:
    """Whether the map is from all features of an example to all, rather than between channels."""
    alike = 1 <= len(front) == len(back) <= 2
    return connector is Connector.linear and not alike


class StitchingLayer(nn.Module):
    """An affine map from a front's activations to a back's, as `connector` says.

    `front` and `back` are the shapes of one example's activation, and `channel_axes` which axis of
    either counts channels (by default `usual_channel_axis`). `weight` is (outputs, inputs) and
    `bias` (outputs,): of channels, the same at each position, or of flattened examples. There are
    none if the connector is `none`. Where front and back have different numbers of positions, the
    front's activations are interpolated first: maps bilinearly, volumes trilinearly, tokens
    linearly along the sequence (`align_corners=False`).

    With `batch_norm`, one goes before the map and one after it (as in Bansal et al. 2021). While
    the layer trains, they use the statistics of the batch; `settle` sets those of eval mode.
    """

    def __init__(
        self,
        connector: Connector,
        front: Shape,
        back: Shape,
        batch_norm: bool = False,
        channel_axes: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.connector, self.front, self.back = connector, tuple(front), tuple(back)
        usual = usual_channel_axis(self.front), usual_channel_axis(self.back)
        self.front_axis, self.back_axis = channel_axes or usual
        self.flattens = flattens(connector, front, back)
        self.before: nn.BatchNorm1d | None = None
        self.after: nn.BatchNorm1d | None = None
        if connector is not Connector.none:
            linear = nn.Linear(*self.size)
            self.weight, self.bias = linear.weight, linear.bias
            if batch_norm:
                self.before = nn.BatchNorm1d(linear.in_features)
                self.after = nn.BatchNorm1d(linear.out_features)

    @property
    def size(self) -> tuple[int, int]:
        """The numbers of inputs and outputs of the map."""
        if self.flattens:
            return math.prod(self.front), math.prod(self.back)
        return self.front[self.front_axis], self.back[self.back_axis]

    def forward(self, activation: Tensor) -> Tensor:
        if self.connector is Connector.none:
            return self._resized(activation)
        rows = self.inputs(activation)
        rows = self.before(rows) if self.before else rows
        rows = self._mapped(rows)
        rows = self.after(rows) if self.after else rows
        if self.flattens or len(self.back) == 1:
            return rows.reshape(-1, *self.back)
        sizes = positions(self.back, self.back_axis)
        by_position = rows.reshape(len(activation), *sizes, rows.shape[1])
        return _laid_out(by_position.movedim(-1, 1 + self.back_axis), activation)

    def inputs(self, activation: Tensor) -> Tensor:
        """The front's activations as the map takes them, (rows, inputs), of the type of its
        weights: a row for each example or, of channels, for each of its positions."""
        activation = activation.to(self.weight.dtype)
        if self.flattens:
            return activation.reshape(len(activation), -1)
        return _rows(self._resized(activation), self.front_axis)

    def targets(self, activation: Tensor) -> Tensor:
        """The back's activations as the map should give them, (rows, outputs)."""
        if self.flattens:
            return activation.reshape(len(activation), -1)
        return _rows(activation, self.back_axis)

    def _mapped(self, rows: Tensor) -> Tensor:
        return functional.linear(rows, self.weight, self.bias)

    def _resized(self, activation: Tensor) -> Tensor:
        """The front's activations at as many positions as the back has."""
        sizes = positions(self.back, self.back_axis)
        if self.flattens or positions(self.front, self.front_axis) == sizes:
            return activation
        mode = ("linear", "bilinear", "trilinear")[len(sizes) - 1]
        axis = 1 + self.front_axis
        by_channel = activation.movedim(axis, 1)
        return functional.interpolate(by_channel, sizes, mode=mode).movedim(1, axis)

    @torch.no_grad()
    def settle(self, batches: Batches) -> None:
        """Go to eval mode, with the statistics of the batch norms over all examples, whatever the
        batches are: `batches()` iterates over the front's activations for them."""
        for _ in self._settled(batches):
            pass

    @torch.no_grad()
    def neutralize_norms(self, batches: Batches) -> None:
        """Go to eval mode, with batch norms that change nothing there: their scale and shift undo
        their statistics, as `settle` has them, so that the layer is the affine map that it holds.
        """
        for norm in self._settled(batches):
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None and variance is not None
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.copy_(mean)

    def _settled(self, batches: Batches) -> Iterator[nn.BatchNorm1d]:
        """Set the statistics of one batch norm after the other, each in eval mode."""
        self.eval()
        if before := self.before:
            _set_statistics(before, map(self.inputs, batches()))
            yield before
            assert self.after
            inputs = (before(self.inputs(activation)) for activation in batches())
            _set_statistics(self.after, map(self._mapped, inputs))
            yield self.after

    def json(self) -> dict[str, Any]:
        """What the spec of a stitched model says of its stitching layer."""
        axes = [self.front_axis, self.back_axis]
        usual = [usual_channel_axis(self.front), usual_channel_axis(self.back)]
        return {
            "connector": str(self.connector),
            "front": list(self.front),
            "back": list(self.back),
            "batch_norm": self.before is not None,
            **({"channel_axes": axes} if axes != usual else {}),
        }

    @staticmethod
    def from_json(value: Any) -> "StitchingLayer":
        """A layer with fresh weights; raises MemtoolError if `value` is not what `json` gives."""
        match value:
            case {
                "connector": "conv1x1" | "linear" | "none" as connector,
                "front": [*front],
                "back": [*back],
                "batch_norm": bool(batch_norm),
                **rest,
            } if all(isinstance(size, int) for size in [*front, *back]):
                shapes = tuple(front), tuple(back)
                axes = _channel_axes(rest.get("channel_axes"), *shapes)
                return StitchingLayer(Connector(connector), *shapes, batch_norm, axes)
        raise MemtoolError(f"not the spec of a stitching layer: {value!r:.80}")


def _set_statistics(norm: nn.BatchNorm1d, batches: Iterable[Tensor]) -> None:
    """Set the mean and the variance of a batch norm to those of its inputs, (rows, channels) each,
    taken together; they are summed in float64 about the mean of the first batch."""
    origin, count, sums, squares = None, 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        batch = batch.cpu() if batch.device.type == "mps" else batch  # which has no float64
        rows = batch.double()
        origin = rows.mean(0) if origin is None else origin
        rows = rows - origin
        count += len(rows)
        sums, squares = sums + rows.sum(0), squares + rows.square().sum(0)
    assert origin is not None and norm.running_mean is not None and norm.running_var is not None
    mean = sums / count
    norm.running_mean.copy_(origin + mean)
    norm.running_var.copy_((squares - count * mean.square()) / max(count - 1, 1))
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.fill_(1)


def _channel_axes(value: Any, front: Shape, back: Shape) -> tuple[int, int] | None:
    """Raises MemtoolError unless `value` is None or has an axis of each shape."""
    match value:
        case None:
            return None
        case [int(f), int(b)] if 0 <= f < len(front) and 0 <= b < len(back):
            return f, b
    raise MemtoolError(f"not the channel axes of a stitching layer: {value!r:.80}")


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` with its axes in the order in memory that those of `like` have: the kernels that
    follow round differently otherwise, and the identity would change the last bits."""
    if tensor.ndim != like.ndim:
        return tensor.contiguous()
    order = axes_in_memory(like)
    inverse = sorted(range(like.ndim), key=order.__getitem__)
    return tensor.permute(order).contiguous().permute(inverse)


def _rows(activation: Tensor, channel_axis: int) -> Tensor:
    """(n, ...) as (n * positions, channels); the axis is that of an example. Where the channels lie
    last in memory, as those of tokens do, nothing is copied."""
    return activation.movedim(1 + channel_axis, -1).flatten(0, -2)


class StitchedModel(nn.Module):
    """`front` up to its layer, `stitching`, and `back` from its layer on.

    Its layers are `front.NAME` up to the cut, `stitching`, and `back.NAME` from the cut on.
    """

    def __init__(
        self,
        front: nn.Module,
        back: nn.Module,
        stitching: StitchingLayer,
        front_layer: str,
        back_layer: str,
    ) -> None:
        super().__init__()
        self.front, self.back, self.stitching = front, back, stitching
        self.front_layer, self.back_layer = front_layer, back_layer
        self._rest = Back(back, back_layer)

    def forward(self, images: Tensor) -> Any:
        reached = run_to(self.front, [self.front_layer], images)
        return self._rest(self.stitching(reached[self.front_layer]), images)


def stitched_spec(
    front: ModelSpec, back: ModelSpec, front_layer: str, back_layer: str, layer: StitchingLayer
) -> ModelSpec:
    """The spec from which `models.build` makes a stitched model."""
    return ModelSpec(
        STITCHED,
        {
            "front": front.json(),
            "back": back.json(),
            "front_layer": front_layer,
            "back_layer": back_layer,
            "stitching": layer.json(),
        },
    )
