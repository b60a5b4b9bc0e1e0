"""The initialization of stitching layers: least squares, the identity, random."""

import copy

import pytest
import torch
from torch import Tensor, nn

from memtool.models import Connector, StitchedModel, StitchingLayer
from memtool.stitching import Init
from memtool.stitching.least_squares import LeastSquares, initialize


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def solved(x: Tensor, y: Tensor, batch: int = 64) -> tuple[Tensor, Tensor]:
    solver = LeastSquares()
    for ours, theirs in zip(x.split(batch), y.split(batch), strict=True):
        solver.update(ours, theirs)
    return solver.compute()


def residual(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> float:
    return float((x.double() @ weight.T + bias - y.double()).square().mean())


def reference(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares with a column of ones, of least norm, in float64."""
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    inputs = torch.cat([x.double(), ones], 1)
    # What float32 leaves of a linear dependence is no direction of its own.
    solution = torch.linalg.lstsq(inputs, y.double(), rcond=1e-6, driver="gelsd")
    return solution.solution[:-1].T, solution.solution[-1]


def test_least_squares_is_the_textbook_solution_whatever_the_batches():
    x, y = random(300, 12) + 5, random(300, 7, seed=1)
    expected = reference(x, y)
    for batch in (300, 64, 1):
        for mine, theirs in zip(solved(x, y, batch), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_least_squares_recovers_a_rotation_of_the_channels():
    x = random(1800, 16) * torch.logspace(-2, 2, 16) + 3
    rotation = torch.linalg.qr(random(16, 16, seed=1).double()).Q
    weight, bias = solved(x, (x.double() @ rotation.T).float())
    # To the float32 of the activations, each channel on its own scale.
    torch.testing.assert_close(weight, rotation, rtol=0, atol=1e-5 * 100)
    small = random(1800, 16)
    weight, bias = solved(small, small.double() @ rotation.T)
    torch.testing.assert_close(weight, rotation, rtol=0, atol=1e-5)
    torch.testing.assert_close(bias, torch.zeros(16).double(), rtol=0, atol=1e-5)


def test_dead_and_duplicate_channels_get_a_solution_as_good_as_the_best():
    x, y = random(400, 10), random(400, 5, seed=1)
    x[:, 3] = 0
    x[:, 4] = 7.3
    x[:, 5] = x[:, 6]
    x[:, 7] = 2 * x[:, 8] - x[:, 9]
    weight, bias = solved(x, y)
    assert residual(x, y, weight, bias) == pytest.approx(residual(x, y, *reference(x, y)), 1e-6)
    assert weight[:, [3, 4]].abs().max() == 0
    assert weight.abs().max() < 10
    torch.testing.assert_close(weight[:, 5], weight[:, 6], rtol=1e-4, atol=1e-5)


def test_constant_features_and_fewer_examples_than_features_are_finite():
    weight, bias = solved(torch.full((20, 3), 2.5), random(20, 4))
    assert weight.abs().max() == 0
    torch.testing.assert_close(bias, random(20, 4).double().mean(0))
    x, y = random(10, 40), random(10, 4, seed=1)
    weight, bias = solved(x, y)
    assert residual(x, y, weight, bias) < 1e-12
    assert weight.abs().max() < 10


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_least_squares_keeps_to_the_scale_of_each_channel(scale):
    x, y = random(300, 6), random(300, 3, seed=1)
    weight, bias = solved(x, y)
    factors = torch.tensor([scale, 1, 1, 1, 1, 1])
    scaled_weight, scaled_bias = solved(x * factors, y)
    torch.testing.assert_close(scaled_weight * factors, weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scaled_bias, bias, rtol=1e-4, atol=1e-6)


def test_a_rotation_folded_into_the_network_is_recovered():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4))
    rotation = torch.linalg.qr(random(8, 8, seed=1)).Q
    turned = copy.deepcopy(model)
    with torch.no_grad():
        turned[0].weight.copy_(torch.einsum("qp,pchw->qchw", rotation, model[0].weight))
        turned[0].bias.copy_(rotation @ model[0].bias)
    images = random(200, 3, 8, 8)
    stitching = StitchingLayer(Connector.conv1x1, (8, 6, 6), (8, 6, 6))
    initialize(
        stitching,
        Init.lstsq,
        lambda: (turned[0](batch) for batch in images.split(64)),
        lambda: (model[0](batch) for batch in images.split(64)),
    )
    torch.testing.assert_close(stitching.weight, rotation.T, rtol=0, atol=1e-5)
    whole = StitchedModel(turned, model, stitching, "0", "0").eval()
    torch.testing.assert_close(whole(images), model(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("how", list(Init))
def test_batch_norm_leaves_the_start_as_it_is(how):
    maps, targets = 3 * random(40, 6, 3, 3) + 2, random(40, 6, 3, 3, seed=1)

    def started(batch_norm: bool) -> StitchingLayer:
        torch.manual_seed(0)
        stitching = StitchingLayer(Connector.conv1x1, (6, 3, 3), (6, 3, 3), batch_norm)
        initialize(stitching, how, lambda: maps.split(20), lambda: targets.split(20))
        return stitching

    torch.testing.assert_close(started(True)(maps), started(False)(maps), rtol=1e-4, atol=1e-4)
