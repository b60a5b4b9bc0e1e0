"""Stitching: the front of one network, a stitching layer, and the back of another.

Both networks stay frozen and in eval mode, batch-norm buffers included; the stitching layer alone
is trained (Lenc and Vedaldi 2015; Bansal et al. 2021). The control, a front stitched to its own
back, shows how much of a network the stitching layer repairs by itself.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from memtool import MemtoolError
from memtool.layers import Back, Layer, run_to
from memtool.models.spec import Connector, ModelSpec
from memtool.stitching.settings import Start

Shape = tuple[int, ...]  # of one example's activation: (d,), (t, d), (c, h, w) or (h, w, c)

# Relative to the variance of each of the front's channels: far below any signal in float32
# activations, and enough that channels which are copies of each other share their weight.
RIDGE = 1e-9
# A channel whose variance is this small a part of the mean is dead: float32 resolves no less.
DEAD = 1e-14
# Training keeps a weight, its gradient and Adam's two moments, in float32.
BYTES_PER_WEIGHT = 16


def channel_axis(shape: Shape) -> int:
    """Which axis of a shape counts channels: the last one of vectors and tokens, the first one of
    maps, unless the other two alone are equal: maps are square, and some have channels last."""
    if len(shape) == 3 and not shape[0] == shape[1] != shape[2]:
        return 0
    return len(shape) - 1


def channels(shape: Shape) -> int:
    return shape[channel_axis(shape)]


def positions(shape: Shape) -> Shape:
    """A shape without its channels: () for vectors, (t,) for tokens, (h, w) for maps."""
    axis = channel_axis(shape)
    return shape[:axis] + shape[axis + 1 :]


def flattens(connector: Connector, front: Shape, back: Shape) -> bool:
    """Whether the map is of all that an example has, rather than of the channels alone."""
    alike = len(front) == len(back) <= 2
    return connector is Connector.linear and not alike


def joined(front: Layer, back: Layer, wanted: Connector, resize: bool, memory: int) -> Connector:
    """What joins the two layers, if `wanted`: `auto` becomes `conv1x1` or `linear`.

    Raises MemtoolError with both shapes if that is impossible: where positions differ in number
    without `resize`, channels where there is nothing to map them, and where a flattened map would
    take more than `memory` bytes.
    """
    a, b = front.shape, back.shape
    cannot = f"cannot stitch {front.name!r} of shape {a} to {back.name!r} of shape {b}"
    rank = max(len(a), len(b))
    chosen = wanted
    if wanted is Connector.auto:
        chosen = Connector.conv1x1 if rank == 3 else Connector.linear
    if flattens(chosen, a, b) and wanted is Connector.linear:
        _check_memory(cannot, math.prod(a), math.prod(b), memory)
        return chosen
    if len(a) != len(b) or not 1 <= rank <= 3:
        raise MemtoolError(f"{cannot}; only --connector linear, which flattens them, joins these")
    if chosen is Connector.conv1x1 and rank != 3:
        raise MemtoolError(f"{cannot} by a 1x1 convolution; use --connector linear")
    if chosen is Connector.none and channels(a) != channels(b):
        raise MemtoolError(f"{cannot} without a map of channels; use --connector auto")
    if positions(a) != positions(b) and not resize:
        raise MemtoolError(
            f"{cannot}: not only the channels differ in number; --resize interpolates, "
            "or cut where the sizes agree (--at FRONT_LAYER=BACK_LAYER)"
        )
    return chosen


def _check_memory(cannot: str, inputs: int, outputs: int, memory: int) -> None:
    normal_equations = 8 * inputs * (2 * inputs + 2 * outputs)
    needed = max(BYTES_PER_WEIGHT * inputs * outputs, normal_equations)
    if needed > memory:
        raise MemtoolError(
            f"{cannot}: a flattened map has {inputs * outputs:,} weights and takes "
            f"{math.ceil(needed / 2**20):,} MiB to fit; use --connector conv1x1, a later cut, "
            "or a larger --memory"
        )


class StitchingLayer(nn.Module):
    """The map from a front's activation to a back's, both of any shape that `joined` accepts.

    `weight` is (outputs, inputs) and `bias` (outputs,): of channels, the same at each position, or
    of flattened examples; there are none if `connector` is `none`. Where the positions differ in
    number, the front's are interpolated first: maps bilinearly, tokens linearly along their
    sequence (corners not aligned).

    With `batch_norm` one goes before the map and one after it (as in Bansal et al. 2021). While
    the layer trains, they use the statistics of the batch; `settle` sets those of eval mode.
    """

    def __init__(
        self, connector: Connector, front: Shape, back: Shape, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.connector, self.front, self.back = connector, tuple(front), tuple(back)
        self.flattens = flattens(connector, front, back)
        self.before: nn.BatchNorm1d | None = None
        self.after: nn.BatchNorm1d | None = None
        if connector is not Connector.none:
            linear = nn.Linear(*self.size)
            self.weight, self.bias = linear.weight, linear.bias
            if batch_norm:  # momentum None: running statistics are plain averages over batches
                self.before = nn.BatchNorm1d(linear.in_features, momentum=None)
                self.after = nn.BatchNorm1d(linear.out_features, momentum=None)

    @property
    def size(self) -> tuple[int, int]:
        """Inputs and outputs of the map."""
        count = math.prod if self.flattens else channels
        return count(self.front), count(self.back)

    def forward(self, activation: Tensor) -> Tensor:
        if self.connector is Connector.none:
            return self.resized(activation)
        inputs = self.inputs(activation)
        inputs = self.before(inputs) if self.before else inputs
        outputs = self.mapped(inputs)
        outputs = self.after(outputs) if self.after else outputs
        if self.flattens or len(self.back) == 1:
            return outputs.reshape(-1, *self.back)
        by_channel = outputs.reshape(*outputs.shape[:2], *positions(self.back))
        return _laid_out(by_channel.movedim(1, 1 + channel_axis(self.back)), activation)

    def mapped(self, inputs: Tensor) -> Tensor:
        """The affine map alone: (n, inputs) or (n, inputs, positions) to outputs in their place."""
        if inputs.ndim == 2:
            return functional.linear(inputs, self.weight, self.bias)
        return functional.conv1d(inputs, self.weight[:, :, None], self.bias)

    def resized(self, activation: Tensor) -> Tensor:
        """The front's activation with as many positions as the back's, channels where they are."""
        sizes = positions(self.back)
        if self.flattens or positions(self.front) == sizes:
            return activation
        mode = "bilinear" if len(sizes) == 2 else "linear"
        axis = 1 + channel_axis(self.front)
        by_channel = activation.movedim(axis, 1)
        return functional.interpolate(by_channel, sizes, mode=mode).movedim(1, axis)

    def inputs(self, activation: Tensor) -> Tensor:
        """The front's activation as it is mapped: (n, inputs) or (n, inputs, positions)."""
        if self.flattens:
            return activation.flatten(1)
        return _by_channel(self.resized(activation), self.front)

    def targets(self, activation: Tensor) -> Tensor:
        """The back's activation as outputs: (n, outputs) or (n, outputs, positions)."""
        return activation.flatten(1) if self.flattens else _by_channel(activation, self.back)

    @torch.no_grad()
    def settle(self, inputs: Iterable[Tensor]) -> None:
        """Go to eval mode, with the batch norms' statistics averaged over all `inputs`, batches of
        the front's activations."""
        if self.before and self.after:
            self.before.reset_running_stats()
            self.after.reset_running_stats()
            self.train()
            for activation in inputs:
                self(activation)
        self.eval()

    @torch.no_grad()
    def start_norms(self, inputs: Iterable[Tensor]) -> None:
        """Go to eval mode, with batch norms that change nothing there: their scale and shift undo
        their statistics, so that the layer starts as the map that it holds."""
        if self.before and self.after:
            for activation in inputs:
                inputs = self.inputs(activation)
                self.before(inputs)
                self.after(self.mapped(inputs))
            for norm in (self.before, self.after):
                mean, variance = norm.running_mean, norm.running_var
                assert mean is not None and variance is not None
                norm.weight.copy_((variance + norm.eps).sqrt())
                norm.bias.copy_(mean)
        self.eval()

    def json(self) -> dict[str, Any]:
        return {
            "connector": str(self.connector),
            "front": list(self.front),
            "back": list(self.back),
            "batch_norm": self.before is not None,
        }

    @staticmethod
    def from_json(value: Any) -> "StitchingLayer":
        """Raises MemtoolError if `value` is not what `json` gives."""
        match value:
            case {
                "connector": "conv1x1" | "linear" | "none" as connector,
                "front": [*front],
                "back": [*back],
                "batch_norm": bool(batch_norm),
            } if all(isinstance(size, int) for size in [*front, *back]):
                shapes = tuple(front), tuple(back)
                return StitchingLayer(Connector(connector), *shapes, batch_norm)
        raise MemtoolError(f"not the spec of a stitching layer: {value!r:.80}")


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` with its axes in memory in the order that those of `like` have: the kernels that
    follow round differently otherwise, and the identity would change the last bits."""
    if tensor.ndim != like.ndim:
        return tensor.contiguous()
    order = sorted(range(like.ndim), key=like.stride, reverse=True)
    inverse = sorted(range(like.ndim), key=order.__getitem__)
    return tensor.permute(order).contiguous().permute(inverse)


def _by_channel(activation: Tensor, shape: Shape) -> Tensor:
    """(n, ...) as (n, channels) or (n, channels, positions); `shape`, an example's, says which axis
    counts the channels."""
    first = activation.movedim(1 + channel_axis(shape), 1)
    return first.flatten(2) if first.ndim > 2 else first


class LeastSquares:
    """The affine map from x to y of least squared error, from streamed batches: of (n, p) to
    (n, q), or of (n, p, l) to (n, q, l), the same at each of the l positions.

    Normal equations of the centered variables, summed in float64 about a fixed origin near the
    mean. Each x is scaled to variance 1, so that the ridge weighs small channels as large ones;
    directions in which x does not vary get no weight.
    """

    def __init__(self) -> None:
        self.n = 0
        self.origins: tuple[Tensor, Tensor] | None = None

    def update(self, x: Tensor, y: Tensor) -> None:
        x, y = _rows(x), _rows(y)
        if self.origins is None:
            self.origins = (x.mean(0), y.mean(0))
            self.xx = x.new_zeros(x.shape[1], x.shape[1])
            self.xy = x.new_zeros(x.shape[1], y.shape[1])
            self.x, self.y = x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1])
        x, y = x - self.origins[0], y - self.origins[1]
        self.n += len(x)
        self.xx.addmm_(x.T, x)
        self.xy.addmm_(x.T, y)
        self.x += x.sum(0)
        self.y += y.sum(0)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Weight (q, p) and bias (q,), float64."""
        assert self.origins is not None
        x_mean, y_mean = self.x / self.n, self.y / self.n
        xx = self.xx / self.n - x_mean[:, None] * x_mean
        xy = self.xy / self.n - x_mean[:, None] * y_mean
        variance = xx.diagonal().clamp(min=0)
        alive = variance > DEAD * variance.mean()
        scale = torch.where(alive, variance, torch.inf).rsqrt()  # 0 for a dead channel
        xx *= scale[:, None] * scale
        xx.diagonal().add_(torch.where(alive, RIDGE, 1.0))
        weight = (torch.linalg.solve(xx, scale[:, None] * xy) * scale[:, None]).T
        bias = y_mean + self.origins[1] - weight @ (x_mean + self.origins[0])
        return weight, bias


def _rows(tensor: Tensor) -> Tensor:
    """(n, p) or (n, p, l) as (n * l, p), in float64; on the CPU if the device has none."""
    tensor = tensor.cpu() if tensor.device.type == "mps" else tensor
    return tensor.movedim(1, -1).reshape(-1, tensor.shape[1]).double()


class StitchedModel(nn.Module):
    """`front` up to its layer, `stitching`, and `back` from its layer on; a model like any other.

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
        self._resume = Back(back, back_layer)

    def forward(self, images: Tensor) -> Tensor:
        reached = run_to(self.front, [self.front_layer], images)
        activation = self.stitching(reached[self.front_layer])
        return self._resume(activation, images)

    @staticmethod
    def spec(
        front: ModelSpec, back: ModelSpec, front_layer: str, back_layer: str, layer: StitchingLayer
    ) -> ModelSpec:
        """The spec that `build` takes."""
        return ModelSpec(
            "stitched",
            {
                "front": front.json(),
                "back": back.json(),
                "front_layer": front_layer,
                "back_layer": back_layer,
                "stitching": layer.json(),
            },
        )


@torch.no_grad()
def start(
    layer: StitchingLayer,
    how: Start,
    inputs: Callable[[], Iterable[Tensor]],
    targets: Callable[[], Iterable[Tensor]],
) -> None:
    """Make `layer` the map that `how` says, and put it in eval mode.

    `inputs` and `targets` iterate over the front's and the back's activations of all training
    images, in the same batches; what is not needed is not called.
    """
    if layer.connector is Connector.none:
        layer.eval()
        return
    if how is Start.identity:
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    if how is Start.lstsq:
        solver = LeastSquares()
        for ours, theirs in zip(inputs(), targets(), strict=True):
            solver.update(layer.inputs(ours), layer.targets(theirs))
        weight, bias = solver.compute()
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    layer.start_norms(inputs())
