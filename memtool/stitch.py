"""Stitching: the front of one network, a stitching layer, and the back of another.

Both networks stay frozen and in eval mode, batch-norm buffers included; the stitching layer alone
is trained (Lenc and Vedaldi 2015; Bansal et al. 2021). The control, a front stitched to its own
back, shows how much of a network the stitching layer repairs by itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from memtool import MemtoolError
from memtool.choices import Start
from memtool.layers import Layer, run_from, run_to
from memtool.models import ModelSpec, build

# Relative to the mean variance of the front's channels: far below any signal in float32
# activations, and enough that channels which are dead or copies of each other get a solution.
RIDGE = 1e-9


class StitchingLayer(nn.Module):
    """An affine map of channels: a 1x1 convolution of (n, c, h, w), a linear layer of (n, d) or
    (n, t, d). `weight` is (outputs, inputs), `bias` is (outputs,)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        linear = nn.Linear(inputs, outputs)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, activation: Tensor) -> Tensor:
        if activation.ndim == 4:
            return nn.functional.conv2d(activation, self.weight[:, :, None, None], self.bias)
        return nn.functional.linear(activation, self.weight, self.bias)


def connector(front: Layer, back: Layer) -> str:
    """`conv1x1` or `linear`, whichever joins the two layers.

    Raises MemtoolError with both shapes if they cannot be joined: other than channels, or the last
    dimension of vectors and tokens, all sizes must agree.
    """
    ours, theirs = front.shape, back.shape
    if len(ours) == len(theirs) == 3 and ours[1:] == theirs[1:]:
        return "conv1x1"
    if len(ours) == len(theirs) and len(ours) in (1, 2) and ours[:-1] == theirs[:-1]:
        return "linear"
    raise MemtoolError(
        f"cannot stitch {front.name!r} of shape {ours} to {back.name!r} of shape {theirs}: "
        "only the channels may differ in number"
    )


def channels(layer: Layer) -> int:
    """How many channels a layer has: the first size of (c, h, w), the last of (d,) and (t, d)."""
    return layer.shape[0] if len(layer.shape) == 3 else layer.shape[-1]


def by_channel(activation: Tensor) -> Tensor:
    """(n, c, h, w) as (n * h * w, c); (n, t, d) as (n * t, d); (n, d) as it is."""
    if activation.ndim == 4:
        activation = activation.movedim(1, -1)
    return activation.reshape(-1, activation.shape[-1])


class LeastSquares:
    """The affine map from x (m, p) to y (m, q) of least squared error, from streamed batches.

    Normal equations of the centered variables, summed in float64 about a fixed origin near the
    mean. Directions in which x does not vary get no weight beyond what the ridge leaves.
    """

    def __init__(self) -> None:
        self.n = 0
        self.origins: tuple[Tensor, Tensor] | None = None

    def update(self, x: Tensor, y: Tensor) -> None:
        x, y = x.double(), y.double()
        if self.origins is None:
            self.origins = (x.mean(0), y.mean(0))
            self.xx = x.new_zeros(x.shape[1], x.shape[1])
            self.xy = x.new_zeros(x.shape[1], y.shape[1])
            self.x, self.y = x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1])
        x, y = x - self.origins[0], y - self.origins[1]
        self.n += len(x)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.x += x.sum(0)
        self.y += y.sum(0)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Weight (q, p) and bias (q,), float64."""
        assert self.origins is not None
        x_mean, y_mean = self.x / self.n, self.y / self.n
        xx = self.xx / self.n - x_mean[:, None] * x_mean
        xy = self.xy / self.n - x_mean[:, None] * y_mean
        scale = xx.diagonal().mean()
        ridge = RIDGE * torch.where(scale > 0, scale, torch.ones_like(scale))
        xx.diagonal().add_(ridge)
        weight = torch.linalg.solve(xx, xy).T
        bias = y_mean + self.origins[1] - weight @ (x_mean + self.origins[0])
        return weight, bias


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

    def forward(self, images: Tensor) -> Tensor:
        activation = self.stitching(run_to(self.front, self.front_layer, images))
        return run_from(self.back, self.back_layer, activation, images)

    @staticmethod
    def spec(
        front: ModelSpec, back: ModelSpec, front_layer: str, back_layer: str, layer: StitchingLayer
    ) -> ModelSpec:
        """The spec that `build` takes."""
        outputs, inputs = layer.weight.shape
        return ModelSpec(
            "stitched",
            {
                "front": front.json(),
                "back": back.json(),
                "front_layer": front_layer,
                "back_layer": back_layer,
                "stitching": [inputs, outputs],
            },
        )

    @staticmethod
    def build(spec: ModelSpec) -> "StitchedModel":
        """The model that a `spec` of the above kind says, with fresh weights."""
        front, back = map(build, spec.parts)
        layers = spec.options["front_layer"], spec.options["back_layer"]
        return StitchedModel(front, back, StitchingLayer(*spec.options["stitching"]), *layers)


@torch.no_grad()
def started(
    start: Start,
    front: Layer,
    back: Layer,
    pairs: Callable[[], Any],
    device: torch.device,
) -> StitchingLayer:
    """A stitching layer from `front` to `back` that starts as `start` says.

    `pairs()` iterates over (front activation, back activation) of all training images, batch by
    batch; only `lstsq` calls it. Raises MemtoolError for an identity between unequal channels.
    """
    layer = StitchingLayer(channels(front), channels(back)).to(device)
    match start:
        case Start.identity:
            if channels(front) != channels(back):
                raise MemtoolError(
                    f"no identity from {channels(front)} channels of {front.name!r} to "
                    f"{channels(back)} of {back.name!r}; use --init lstsq or random"
                )
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        case Start.lstsq:
            solver = LeastSquares()
            for ours, theirs in pairs():
                solver.update(by_channel(ours), by_channel(theirs))
            weight, bias = solver.compute()
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return layer
