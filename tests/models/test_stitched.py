"""Stitching layers and stitched models."""

import copy
import functools

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from memtool import MemtoolError
from memtool.checkpoints import Network
from memtool.layers import Layer, trace
from memtool.layers.tracing import traced
from memtool.models import (
    Connector,
    ModelSpec,
    StitchedModel,
    StitchingLayer,
    build,
    parse,
    stitched_spec,
)
from memtool.models.nets import digits_cnn
from memtool.stitching.checks import is_cut
from memtool.stitching.planning import connector_between


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_connectors_are_the_maps_that_torch_has():
    maps = random(3, 8, 4, 4)
    conv = StitchingLayer(Connector.conv1x1, (8, 4, 4), (6, 4, 4))
    expected = functional.conv2d(maps, conv.weight[:, :, None, None], conv.bias)
    torch.testing.assert_close(conv(maps), expected)

    resized = StitchingLayer(Connector.conv1x1, (8, 4, 4), (6, 7, 3))
    expected = functional.interpolate(maps, (7, 3), mode="bilinear", align_corners=False)
    expected = functional.conv2d(expected, resized.weight[:, :, None, None], resized.bias)
    torch.testing.assert_close(resized(maps), expected)

    volumes = random(3, 8, 2, 4, 4)
    resized = StitchingLayer(Connector.conv1x1, (8, 2, 4, 4), (6, 3, 4, 2))
    expected = functional.interpolate(volumes, (3, 4, 2), mode="trilinear", align_corners=False)
    expected = functional.conv3d(expected, resized.weight[:, :, None, None, None], resized.bias)
    torch.testing.assert_close(resized(volumes), expected)

    flat = StitchingLayer(Connector.linear, (8, 4, 4), (6, 2, 2))
    expected = functional.linear(maps.flatten(1), flat.weight, flat.bias).view(3, 6, 2, 2)
    torch.testing.assert_close(flat(maps), expected)

    tokens = random(3, 9, 5)
    linear = StitchingLayer(Connector.linear, (9, 5), (9, 7))
    expected = functional.linear(tokens, linear.weight, linear.bias)
    torch.testing.assert_close(linear(tokens), expected)

    channels_last = random(3, 4, 4, 5)  # as swin transformers have them
    conv = StitchingLayer(Connector.conv1x1, (4, 4, 5), (4, 4, 7))
    expected = functional.linear(channels_last, conv.weight, conv.bias)
    torch.testing.assert_close(conv(channels_last), expected)


def test_batch_norm_settles_on_the_statistics_of_all_examples():
    maps = 3 * random(40, 6, 3, 3) + 2
    stitching = StitchingLayer(Connector.conv1x1, (6, 3, 3), (5, 3, 3), batch_norm=True)
    stitching.settle(lambda: [maps])
    assert not stitching.training
    rows = stitching(maps).movedim(1, -1).reshape(-1, 5)
    torch.testing.assert_close(rows.mean(0), torch.zeros(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(rows.std(0), torch.ones(5), rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", ["settle", "neutralize_norms"])
def test_statistics_do_not_depend_on_the_batches(method):
    # What comes later differs in mean and spread, as in data that are sorted by class.
    maps = random(60, 6, 3, 3) * torch.linspace(0.1, 9, 60)[:, None, None, None] + 50
    maps[30:] += 7

    def settled(sizes: list[int]) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        layer = StitchingLayer(Connector.conv1x1, (6, 3, 3), (5, 3, 3), batch_norm=True)
        getattr(layer, method)(lambda: iter(maps.split(sizes)))
        return layer.state_dict()

    whole = settled([60])
    for sizes in ([30, 30], [7, 52, 1], [1] * 60):
        for name, tensor in settled(sizes).items():
            torch.testing.assert_close(tensor, whole[name], rtol=1e-6, atol=1e-6)
    inputs = maps.double().movedim(1, -1).reshape(-1, 6)
    torch.testing.assert_close(
        whole["before.running_mean"].double(), inputs.mean(0), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        whole["before.running_var"].double(), inputs.var(0), rtol=1e-6, atol=0
    )


# ---------------------------------------------------------------- stitched models


def resnet() -> nn.Module:
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=4)


def mobilenet() -> nn.Module:
    settings = torchvision.models.mobilenetv3.InvertedResidualConfig
    blocks = [
        settings(8, 3, 16, 8, True, "HS", 1, 1, 1.0),
        settings(8, 3, 24, 16, False, "RE", 2, 1, 1.0),
    ]
    return torchvision.models.MobileNetV3(blocks, 32, num_classes=4)


def vit() -> nn.Module:
    model = torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=4)
    nn.init.normal_(model.heads[-1].weight)  # it starts at zero, and would hide everything
    return model


def swin() -> nn.Module:
    return torchvision.models.SwinTransformer([2, 2], 16, [2, 2], [2, 2], [4, 4], num_classes=4)


class Volumes(nn.Sequential):
    """Takes the channels of its images for their depth."""

    def __init__(self) -> None:
        convolution = functools.partial(nn.Conv3d, kernel_size=3, padding=1)
        stem = nn.Sequential(convolution(1, 6), nn.BatchNorm3d(6), nn.ReLU(inplace=True))
        body = nn.Sequential(convolution(6, 4), nn.BatchNorm3d(4), nn.ReLU(inplace=True))
        super().__init__(stem, body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 4))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[:, None])


ARCHITECTURES = {
    "digits-cnn": (lambda: digits_cnn(4, 3, 16), 16),
    "resnet": (resnet, 32),
    "densenet": (lambda: torchvision.models.DenseNet(8, (2, 2), 8, num_classes=4), 32),
    "mobilenet": (mobilenet, 32),
    "convnext": (
        lambda: torchvision.models.ConvNeXt(
            [
                torchvision.models.convnext.CNBlockConfig(8, 16, 1),
                torchvision.models.convnext.CNBlockConfig(16, None, 1),
            ],
            num_classes=4,
        ),
        32,
    ),
    "vit": (vit, 16),
    "swin": (swin, 16),
    "volumes": (Volumes, 16),
    "stitched": (lambda: stitched(digits_cnn(4, 3, 16), "block2"), 16),
}


def stitched(model: nn.Module, cut: str) -> StitchedModel:
    shape = {found.name: found.shape for found in trace(model, torch.zeros(2, 3, 16, 16))}[cut]
    stitching = StitchingLayer(Connector.conv1x1, shape, shape)
    return StitchedModel(model, copy.deepcopy(model), stitching, cut, cut)


def cuts_of(model: nn.Module, size: int) -> list[Layer]:
    found = trace(model, torch.zeros(2, 3, size, size))
    return [cut for cut in found if cut.is_cut and cut.same_as == cut.name]


@torch.no_grad()
@pytest.mark.parametrize(("make", "size"), ARCHITECTURES.values(), ids=list(ARCHITECTURES))
def test_a_model_stitched_to_itself_by_the_identity_is_itself_at_every_cut(make, size):
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    images = random(3, 3, size, size)
    expected = model(images)
    assert len({tuple(row.tolist()) for row in expected}) == 3  # it tells the images apart
    found = cuts_of(model, size)
    assert len(found) >= 4
    network = Network(model, [0.5] * 3, [0.2] * 3)
    for cut in found:
        kind = connector_between(cut, cut, Connector.auto, False, 1 << 30)
        assert (kind is Connector.conv1x1) == (len(cut.shape) >= 3)
        stitching = StitchingLayer(kind, cut.shape, cut.shape)
        nn.init.eye_(stitching.weight)
        nn.init.zeros_(stitching.bias)
        whole = StitchedModel(model, model, stitching, cut.name, cut.name).eval()
        torch.testing.assert_close(whole(images), expected, rtol=0, atol=0, msg=cut.name)
        tried = images.mul(50).byte()
        assert is_cut(network, cut.name, tried, network(tried).detach())


def test_a_stitched_model_is_traced_once_whatever_its_weights_are():
    model = stitched(digits_cnn(4, 3, 16), "block2")
    assert not traced(model, torch.rand(2, 3, 16, 16)).reads_values


def test_a_stitched_model_is_built_from_its_spec():
    spec = parse("digits-cnn?num_classes=4")
    stitching = StitchingLayer(Connector.linear, (128,), (64,), batch_norm=True)
    made = stitched_spec(spec, spec, "block5", "block6", stitching)
    model = build(ModelSpec.from_json(made.json()))
    assert isinstance(model, StitchedModel)
    assert model.eval()(random(2, 1, 8, 8)).shape == (2, 4)
    with pytest.raises(MemtoolError, match="not the spec of a stitching layer"):
        build(ModelSpec("stitched", {**made.options, "stitching": {"connector": "magic"}}))
