"""The initialization of a stitching layer, above all the least-squares map."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from memtool.models import Connector, StitchingLayer
from memtool.stitching.settings import Init

# Relative to the variance of each of the front's channels: far below any signal in float32
# activations, and enough that channels which are copies of each other share their weight.
RIDGE = 1e-9
# A channel whose variance is this small a part of the mean variance is dead: float32 resolves no
# less.
DEAD = 1e-14


@torch.no_grad()
def initialize(
    layer: StitchingLayer,
    init: Init,
    inputs: Callable[[], Iterable[Tensor]],
    targets: Callable[[], Iterable[Tensor]],
) -> None:
    """Initialize a stitching layer, and put it into eval mode.

    `inputs` and `targets` iterate over the activations of the front and of the back for all
    training images, in the same batches; what is not needed is not called.
    """
    if layer.connector is Connector.none:
        layer.eval()
        return
    if init is Init.identity:
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    if init is Init.lstsq:
        solver = LeastSquares()
        for ours, theirs in zip(inputs(), targets(), strict=True):
            solver.update(layer.inputs(ours), layer.targets(theirs))
        weight, bias = solver.compute()
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    layer.neutralize_norms(inputs)


class LeastSquares:
    """The affine map from x to y with the least squared error, from batches.

    x is (n, p) and y (n, q). The normal equations of the centered variables are summed in float64,
    about a fixed origin near the mean. Each x is scaled to variance 1, so that the ridge weighs
    small channels as it does large ones; directions in which x does not vary get no weight.

    >>> solver = LeastSquares()
    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> solver.update(x, 3 * x + 1)
    >>> [part.item() for part in map(torch.round, solver.compute())]
    [3.0, 1.0]
    """

    def __init__(self) -> None:
        self.n = 0
        self._origins: tuple[Tensor, Tensor] | None = None

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in a batch."""
        x, y = _double(x), _double(y)
        if self._origins is None:
            self._origins = (x.mean(0), y.mean(0))
            self._xx = x.new_zeros(x.shape[1], x.shape[1])
            self._xy = x.new_zeros(x.shape[1], y.shape[1])
            self._x, self._y = x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1])
        x, y = x - self._origins[0], y - self._origins[1]
        self.n += len(x)
        self._xx.addmm_(x.T, x)
        self._xy.addmm_(x.T, y)
        self._x += x.sum(0)
        self._y += y.sum(0)

    def compute(self) -> tuple[Tensor, Tensor]:
        """The weight (q, p) and the bias (q,) of the map, float64."""
        assert self._origins is not None
        x_mean, y_mean = self._x / self.n, self._y / self.n
        xx = self._xx / self.n - x_mean[:, None] * x_mean
        xy = self._xy / self.n - x_mean[:, None] * y_mean
        variance = xx.diagonal().clamp(min=0)
        alive = variance > DEAD * variance.mean()
        scale = torch.where(alive, variance, torch.inf).rsqrt()  # 0 for a dead channel
        xx *= scale[:, None] * scale
        xx.diagonal().add_(torch.where(alive, RIDGE, 1.0))
        weight = (torch.linalg.solve(xx, scale[:, None] * xy) * scale[:, None]).T
        bias = y_mean + self._origins[1] - weight @ (x_mean + self._origins[0])
        return weight, bias


def _double(tensor: Tensor) -> Tensor:
    """A tensor in float64; on the CPU if the device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
