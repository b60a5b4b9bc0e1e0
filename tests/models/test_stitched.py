"""Stitching layers, their least-squares start, stitched models."""

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from memtool import MemtoolError
from memtool.checkpoints import Network
from memtool.layers import Back, Layer, run_to, trace
from memtool.models.building import build
from memtool.models.nets import digits_cnn
from memtool.models.sources import parse
from memtool.models.spec import Connector, ModelSpec
from memtool.models.stitched import LeastSquares, StitchedModel, StitchingLayer, joined, start
from memtool.stitching import cuts
from memtool.stitching.settings import Start

GIB = 1 << 30


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two threads wait for each other longer than networks as small as these take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def layer(name: str, *shape: int) -> Layer:
    return Layer(name, "Module", shape, True, name)


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


# ---------------------------------------------------------------- least squares


def test_least_squares_is_the_textbook_solution_whatever_the_batches():
    x, y = random(300, 12) + 5, random(300, 7, seed=1)
    expected = reference(x, y)
    for batch in (300, 64, 1):
        for mine, theirs in zip(solved(x, y, batch), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_least_squares_recovers_a_rotation_of_the_channels():
    x = random(200, 16, 9) * torch.logspace(-2, 2, 16)[:, None] + 3
    rotation = torch.linalg.qr(random(16, 16, seed=1).double()).Q
    y = torch.einsum("qp,npl->nql", rotation, x.double())
    weight, bias = solved(x, y.float())
    # To the float32 of the activations, each channel on its own scale.
    torch.testing.assert_close(weight, rotation, rtol=0, atol=1e-5 * 100)
    small = random(200, 16, 9)
    weight, bias = solved(small, torch.einsum("qp,npl->nql", rotation, small.double()))
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


# ---------------------------------------------------------------- stitching layers


@pytest.mark.parametrize(
    ("wanted", "front", "back", "resize", "found", "parameters"),
    [
        ("auto", (8, 4, 4), (6, 4, 4), False, "conv1x1", 8 * 6 + 6),
        ("auto", (8, 4, 4), (6, 2, 2), True, "conv1x1", 8 * 6 + 6),
        ("auto", (5,), (7,), False, "linear", 5 * 7 + 7),
        ("auto", (9, 5), (9, 7), False, "linear", 5 * 7 + 7),
        ("auto", (9, 5), (4, 7), True, "linear", 5 * 7 + 7),
        ("auto", (4, 4, 5), (4, 4, 7), False, "conv1x1", 5 * 7 + 7),
        ("auto", (5, 4, 4), (4, 4, 7), False, "conv1x1", 5 * 7 + 7),
        ("linear", (8, 4, 4), (6, 2, 2), False, "linear", 128 * 24 + 24),
        ("linear", (8, 2, 2), (10,), False, "linear", 32 * 10 + 10),
        ("linear", (3, 4), (2, 2, 2), False, "linear", 12 * 8 + 8),
        ("none", (8, 4, 4), (8, 4, 4), False, "none", 0),
        ("none", (8, 4, 4), (8, 2, 2), True, "none", 0),
    ],
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_connectors_join_these_shapes(wanted, front, back, resize, found, parameters, batch_norm):
    kind = joined(layer("a", *front), layer("b", *back), Connector(wanted), resize, GIB)
    assert kind == found
    stitching = StitchingLayer(kind, front, back, batch_norm)
    assert stitching(random(3, *front)).shape == (3, *back)
    norms = 2 * sum(stitching.size) if batch_norm and found != "none" else 0
    assert sum(parameter.numel() for parameter in stitching.parameters()) == parameters + norms
    again = StitchingLayer.from_json(stitching.json())
    again.load_state_dict(stitching.state_dict())
    stitching.eval(), again.eval()
    assert torch.equal(stitching(random(3, *front)), again(random(3, *front)))


@pytest.mark.parametrize(
    ("wanted", "front", "back", "message"),
    [
        ("auto", (8, 4, 4), (6, 2, 2), r"\(8, 4, 4\) to 'b' of shape \(6, 2, 2\).*--resize"),
        ("auto", (9, 5), (4, 5), "--resize"),
        ("auto", (8, 4, 4), (10,), "--connector linear"),
        ("conv1x1", (5,), (5,), "use --connector linear"),
        ("none", (8, 4, 4), (6, 4, 4), "use --connector auto"),
        ("none", (8, 4, 4), (8, 2, 2), "--resize"),
        ("linear", (64, 56, 56), (64, 56, 56), "40,282,095,616 weights.*--memory"),
    ],
)
def test_what_cannot_be_joined_is_an_error_with_the_way_out(wanted, front, back, message):
    with pytest.raises(MemtoolError, match=message):
        joined(layer("a", *front), layer("b", *back), Connector(wanted), False, GIB)


def test_connectors_are_the_maps_that_torch_has():
    maps = random(3, 8, 4, 4)
    conv = StitchingLayer(Connector.conv1x1, (8, 4, 4), (6, 4, 4))
    expected = functional.conv2d(maps, conv.weight[:, :, None, None], conv.bias)
    torch.testing.assert_close(conv(maps), expected)

    resized = StitchingLayer(Connector.conv1x1, (8, 4, 4), (6, 7, 3))
    expected = functional.interpolate(maps, (7, 3), mode="bilinear", align_corners=False)
    expected = functional.conv2d(expected, resized.weight[:, :, None, None], resized.bias)
    torch.testing.assert_close(resized(maps), expected)

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


@pytest.mark.parametrize("how", list(Start))
def test_batch_norm_leaves_the_start_as_it_is(how):
    maps, targets = 3 * random(40, 6, 3, 3) + 2, random(40, 6, 3, 3, seed=1)

    def started(batch_norm: bool) -> StitchingLayer:
        torch.manual_seed(0)
        stitching = StitchingLayer(Connector.conv1x1, (6, 3, 3), (6, 3, 3), batch_norm)
        start(stitching, how, lambda: maps.split(20), lambda: targets.split(20))
        return stitching

    torch.testing.assert_close(started(True)(maps), started(False)(maps), rtol=1e-4, atol=1e-4)


def test_batch_norm_settles_on_the_statistics_of_all_examples():
    maps = 3 * random(40, 6, 3, 3) + 2
    stitching = StitchingLayer(Connector.conv1x1, (6, 3, 3), (5, 3, 3), batch_norm=True)
    stitching.settle([maps])
    assert not stitching.training
    rows = stitching(maps).movedim(1, -1).reshape(-1, 5)
    torch.testing.assert_close(rows.mean(0), torch.zeros(5), rtol=0, atol=1e-4)
    torch.testing.assert_close(rows.std(0), torch.ones(5), rtol=1e-2, atol=0)


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
        kind = joined(cut, cut, Connector.auto, False, GIB)
        stitching = StitchingLayer(kind, cut.shape, cut.shape)
        start(stitching, Start.identity, list, list)
        whole = StitchedModel(model, model, stitching, cut.name, cut.name).eval()
        torch.testing.assert_close(whole(images), expected, rtol=0, atol=0, msg=cut.name)
        cuts.check(network, cut.name, images.mul(50).byte(), "model")  # raises nothing


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
    start(
        stitching,
        Start.lstsq,
        lambda: (turned[0](batch) for batch in images.split(64)),
        lambda: (model[0](batch) for batch in images.split(64)),
    )
    torch.testing.assert_close(stitching.weight, rotation.T, rtol=0, atol=1e-5)
    whole = StitchedModel(turned, model, stitching, "0", "0").eval()
    torch.testing.assert_close(whole(images), model(images), rtol=0, atol=1e-4)


def test_a_stitched_model_is_built_from_its_spec():
    spec = parse("digits-cnn?num_classes=4")
    stitching = StitchingLayer(Connector.linear, (128,), (64,), batch_norm=True)
    made = StitchedModel.spec(spec, spec, "block5", "block6", stitching)
    model = build(ModelSpec.from_json(made.json()))
    assert isinstance(model, StitchedModel)
    assert model.eval()(random(2, 1, 8, 8)).shape == (2, 4)
    with pytest.raises(MemtoolError, match="not the spec of a stitching layer"):
        build(ModelSpec("stitched", {**made.options, "stitching": {"connector": "magic"}}))


def test_what_runs_below_the_cut_of_the_back_is_one_example_without_gradients():
    seen = []
    model = digits_cnn().eval().requires_grad_(False)
    model.block2.conv.register_forward_hook(lambda _, __, out: seen.append(out))
    model.block4.conv.register_forward_hook(lambda _, __, out: seen.append(out))
    images = random(5, 1, 8, 8)
    activation = run_to(model, ["block3"], images)["block3"].clone().requires_grad_()
    back = Back(model, "block3")
    back(activation.detach(), images)  # finds out that one image is enough
    seen.clear()
    back(activation, images).sum().backward()
    assert [len(output) for output in seen] == [1, 5]
    assert [output.requires_grad for output in seen] == [False, True]
    assert activation.grad is not None


# ---------------------------------------------------------------- cuts


class Leaky(nn.Module):
    """Its skip connection around `body` is there only if a buffer says so."""

    def __init__(self, leak: bool) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 4)
        self.register_buffer("leak", torch.tensor(leak))

    def forward(self, images: Tensor) -> Tensor:
        inputs = images.flatten(1)
        return self.head(self.body(inputs) + inputs if self.leak else self.body(inputs))


def test_a_layer_inside_a_residual_branch_is_refused_naming_the_block():
    model = resnet().eval()
    found = trace(model, torch.zeros(2, 3, 32, 32))
    with pytest.raises(MemtoolError, match=r"'layer2.0.conv2' is not a cut.*'layer2.0', is"):
        cuts.cuts(found, found, ["layer2.0.conv2"], "front", "back")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    network = Network(model, [0.5] * 3, [0.2] * 3)
    with pytest.raises(MemtoolError, match=r"'layer2.0.conv2' is not a cut.*'layer2.0', is"):
        cuts.check(network, "layer2.0.conv2", images, "front")


def test_a_cut_is_checked_with_the_weights_as_they_are():
    images = torch.randint(0, 256, (2, 1, 2, 3), dtype=torch.uint8)
    body, _ = trace(Leaky(False), torch.zeros(2, 1, 2, 3))
    assert body.is_cut
    cuts.check(Network(Leaky(False), [0.5], [0.2]), "body", images, "sound")
    with pytest.raises(MemtoolError, match="leaky: 'body' is not a cut.*nor is a block"):
        cuts.check(Network(Leaky(True), [0.5], [0.2]), "body", images, "leaky")


def test_layers_of_other_names_are_asked_for():
    front, back = ([layer("a", 3), layer("b", 3)], [layer("a", 3), layer("c", 3)])
    assert cuts.cuts(front, back, ["a", "b=c", "a=a"], "front", "back") == [
        (front[0], back[0]),
        (front[1], back[1]),
    ]
    with pytest.raises(MemtoolError, match="back: has no layer 'b'.*--at b=BACK_LAYER"):
        cuts.cuts(front, back, ["all"], "front", "back")
