"""Layers as they are traced: cuts against their definition, which are the same tensor, axes."""

import random
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from memtool import MemtoolError, layers, models
from memtool.layers import Back, Layer, first_tensor, run_to, trace
from memtool.models import nets


def shaken(model: nn.Module) -> nn.Module:
    """The model with random weights and statistics throughout: none that hides a path (the zeros
    of a fresh vit's head, layer scales of 1e-6)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def replaced(model: nn.Module, name: str, activation: Tensor, images: Tensor) -> Tensor:
    """What `model` gives for `images` with `activation` in place of the output of layer `name`."""
    module_name, calls = name, 0
    if module_name not in dict(model.named_modules()):
        module_name, _, number = name.rpartition("_")
        calls = int(number)
    count = iter(range(10**6))
    handle = model.get_submodule(module_name).register_forward_hook(
        lambda *_: activation.clone() if next(count) == calls else None
    )
    try:
        with torch.no_grad():
            return first_tensor(model(images))
    finally:
        handle.remove()


def cuts_by_definition(model: nn.Module, found: list[Layer], size: int) -> dict[str, bool]:
    """For each layer, whether with its output replaced the logits of two images are the same."""
    one, two, other = torch.randn(3, 1, 3, size, size, generator=torch.Generator().manual_seed(1))
    kept: dict[str, Tensor] = {}

    def keep(name: str, activation: Tensor) -> None:
        kept[name] = activation.clone()

    with torch.no_grad(), layers.observed(model, [f.name for f in found], keep):
        model(other)
    result = {}
    for layer in found:
        try:
            logits = [replaced(model, layer.name, kept[layer.name], x) for x in (one, two)]
        except (TypeError, ValueError, AttributeError):  # its output is no plain tensor
            continue
        result[layer.name] = torch.equal(*logits)
    return result


class Reused(nn.Module):
    """A ReLU called thrice, functional sums, an Identity on a shortcut, dropout, a tuple, a part
    that only looks at parameters, and one block called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut, self.passed = nn.Identity(), nn.Identity()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.split = Halves()
        self.twice = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.5))
        self.bias = nn.Linear(4, 4)
        self.token = nn.Parameter(torch.randn(1, 4))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.relu(self.stem(images))
        x = self.passed(x)
        x = self.relu(self.conv(x) + self.shortcut(x))
        one, two = self.split(x)
        x = self.twice(self.twice(torch.cat([one, two], 1)))
        x = self.relu(x).mean((2, 3)) + self.bias(self.token)
        return {"logits": self.head(self.drop(x))}


class Halves(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.chunk(2, 1)


def test_cuts_of_a_net_that_does_everything_at_once():
    model = shaken(Reused())
    found = trace(model, torch.zeros(2, 3, 8, 8))
    cuts = {layer.name: layer.is_cut for layer in found}
    assert cuts == {
        "stem": True,
        "relu": True,
        "passed": True,
        "conv": False,
        "shortcut": False,  # its input goes to conv as well
        "relu_1": True,
        "split": False,  # both tensors of a tuple are used
        "twice.0": True,
        "twice.1": True,
        "twice": True,
        "twice.0_1": True,
        "twice.1_1": True,
        "twice_1": True,
        "relu_2": True,
        "bias": False,  # does not see the images
        "drop": True,
        "head": False,  # nothing comes after it
    }
    measured = cuts_by_definition(model, found, 8)
    assert measured.pop("head") and not cuts.pop("head")
    assert measured == {name: cuts[name] for name in measured}


def test_same_tensors_go_by_the_outermost_block_of_the_one_that_made_them():
    found = trace(Reused(), torch.zeros(2, 3, 8, 8))
    same = {layer.name: layer.same_as for layer in found if layer.same_as != layer.name}
    assert same == {
        "passed": "relu",
        "shortcut": "relu",
        "twice.0": "twice",
        "twice.1": "twice",
        "twice.0_1": "twice_1",
        "twice.1_1": "twice_1",
    }
    names = [layer.name for layer in trace(nets.resnet18(width=4), torch.zeros(2, 3, 8, 8))]
    same = {layer.name: layer.same_as for layer in trace(nets.resnet18(width=4),
            torch.zeros(2, 3, 8, 8))}  # fmt: skip
    assert same["layer1.1.relu_1"] == same["layer1.1"] == same["layer1"] == "layer1"
    assert same["bn1"] == "bn1" and same["relu"] == "relu" and len(names) == len(set(names))


def test_an_in_place_module_does_not_change_the_layer_before_it():
    found = {layer.name: layer for layer in trace(nets.digits_cnn(), torch.zeros(2, 1, 8, 8))}
    assert found["block1.norm"].same_as == "block1.norm"
    assert found["block1.relu"].same_as == "block1"


class Looking(nn.Module):
    """What `look` makes of a linear map, which may be the very same tensor."""

    def __init__(self, look) -> None:
        super().__init__()
        self.linear, self.look = nn.Linear(6, 6), look

    def forward(self, x):
        return self.look(self.linear(x))


LOOKS = {
    "any": lambda x: x.masked_fill(x > 1e6, 0) if (x > 1e6).any() else x,
    "guard": lambda x: x.clamp(-1e6, 1e6) if x.abs().max() > 1e6 else x,
    "item": lambda x: x / x.norm() if x.norm().item() > 1e6 else x,
    "numpy": lambda x: x if x.numpy().max() < 1e6 else x * 0,
    "equal": lambda x: x.abs() if torch.equal(x, x.abs() * -1) else x,
    "rows": lambda x: x[(x < 1e6).all(1)] if (x > 1e6).nonzero().numel() else x,
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_where_a_model_looks_at_values_each_layer_stands_for_itself(look):
    """On other images it may go on with another tensor."""
    for look_, expected in (
        (look, ["0.linear", "0", "1", "2.linear", "2", "3"]),
        (lambda x: x, ["0", "0", "0", "2", "2", "3"]),
    ):
        model = nn.Sequential(Looking(look_), nn.Identity(), Looking(look_), nn.Linear(6, 5))
        found = trace(model, torch.randn(2, 6))
        assert [layer.same_as for layer in found] == expected


def test_tracing_leaves_the_model_as_it_was():
    model = Reused()
    model.stem.eval()
    modes = [module.training for module in model.modules()]
    trace(model, torch.zeros(2, 3, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


# Small images and few layers of each kind: what differs is how modules are put together. The depths
# are the smallest that have every kind of block.
ZOO = {
    "resnet18?width=8": 32,
    "cnn?width=4": 32,
    "torchvision:resnet18": 32,
    "torchvision:vgg11_bn": 32,
    "torchvision:densenet121": 32,
    "torchvision:mobilenet_v3_small": 32,
    "torchvision:efficientnet_b0": 32,
    "torchvision:convnext_tiny": 32,
    "torchvision:vit_b_32?image_size=64": 64,
    "torchvision:swin_t": 32,
    "torchvision:googlenet": 32,
    "torchvision:inception_v3": 75,
    "torchvision:shufflenet_v2_x0_5": 32,
    "torchvision:regnet_y_400mf": 32,
    "timm:resnet10t": 32,
    "timm:vit_tiny_patch16_224?img_size=32&depth=2": 32,
    "timm:convnext_atto": 32,
    "timm:mixer_s32_224?img_size=64": 64,
}
CHECKED = 12  # layers of each, spread evenly: each costs two forward passes


@pytest.mark.slow
@pytest.mark.parametrize("text, size", ZOO.items(), ids=ZOO)
def test_cuts_are_what_their_definition_says(text, size):
    if text.startswith("timm:"):
        pytest.importorskip("timm")
    spec = models.parse(text)
    torch.manual_seed(0)
    model = shaken(models.build(spec))
    found = trace(models.skeleton(spec).to("meta"), torch.zeros(2, 3, size, size, device="meta"))
    assert found == trace(model, torch.zeros(2, 3, size, size))
    inner = [layer for layer in found if layer.same_as != found[-1].same_as]  # not the output
    some = inner[:: -(-len(inner) // CHECKED)]
    measured = cuts_by_definition(model, some, size)
    assert len(measured) >= len(some) * 0.8
    assert measured == {layer.name: layer.is_cut for layer in some if layer.name in measured}
    assert any(measured.values())


@pytest.mark.parametrize(
    "name", ["alexnet", "mnasnet0_5", "swin_v2_t", "maxvit_t", "wide_resnet50_2"]
)
def test_more_of_torchvision_is_traced_without_weights(name):
    spec = models.parse(f"torchvision:{name}")
    size = models.image_shape(spec)[-1]
    found = trace(models.skeleton(spec).to("meta"), torch.zeros(2, 3, size, size, device="meta"))
    assert found[-1].shape == (1000,) and not found[-1].is_cut
    assert sum(layer.is_cut for layer in found) > 4


def test_a_model_that_gives_no_tensor_is_told():
    class Mute(nn.Module):
        def forward(self, images: Tensor) -> str:
            return "nothing"

    with pytest.raises(MemtoolError, match="Mute returns no tensor"):
        trace(Mute(), torch.zeros(2, 3, 8, 8))


# --- Random networks ------------------------------------------------------------------------------


class Ignoring(nn.Module):
    """Calls an in-place module and goes on with what it was given, not with what that returns."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        self.module(x)
        return x


class Program(nn.Module):
    """A random network on vectors: steps that take any of the tensors so far. All of it is smooth
    and one to one, so that nothing but the way that data take decides what is a cut."""

    WIDTH = 6

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.stem = nn.Linear(3 * 8 * 8, self.WIDTH)
        self.shared = nn.Linear(self.WIDTH, self.WIDTH)
        self.steps = nn.ModuleList()
        self.plan = []
        for number in range(draw.randint(2, 7)):
            kind = draw.choice(list(STEPS))
            self.steps.append(STEPS[kind](self))
            # Mostly the last tensor, so that there are cuts.
            operands = [
                number if draw.random() < 0.8 else draw.randint(0, number) for _ in range(2)
            ]
            self.plan.append((kind, operands))
        self.head = nn.Linear(self.WIDTH, 5)

    def forward(self, images: Tensor) -> Tensor:
        tensors = [self.stem(images.flatten(1))]
        for (kind, (a, b)), step in zip(self.plan, self.steps, strict=True):
            x, y = tensors[a], tensors[b]
            if kind in ("add", "cat"):
                tensors.append(step(x) + y if kind == "add" else step(torch.cat([x, y], 1)))
            elif kind == "detached":
                tensors.append(step(x) + y.detach())
            elif kind == "without gradients":
                with torch.no_grad():
                    frozen = y * 2
                tensors.append(step(x) + frozen)
            elif kind == "halves":
                left, right = x.chunk(2, 1)
                tensors.append(torch.cat([step(left), right], 1))
            elif kind == "view":
                tensors.append(step(x.view(-1, 2, 3)).reshape(-1, self.WIDTH))
            else:
                tensors.append(step(x))
        return self.head(tensors[-1])


STEPS = {
    "linear": lambda self: nn.Linear(self.WIDTH, self.WIDTH),
    "shared": lambda self: self.shared,
    "in place": lambda self: nn.LeakyReLU(0.3, inplace=True),
    "in place, ignored": lambda self: Ignoring(nn.LeakyReLU(0.3, inplace=True)),
    "identity": lambda self: nn.Identity(),
    "dropout": lambda self: nn.Dropout(0.5),
    "block": lambda self: nn.Sequential(nn.Linear(self.WIDTH, self.WIDTH), nn.Tanh()),
    "add": lambda self: nn.Linear(self.WIDTH, self.WIDTH),
    "cat": lambda self: nn.Linear(2 * self.WIDTH, self.WIDTH),
    "detached": lambda self: nn.Linear(self.WIDTH, self.WIDTH),
    "without gradients": lambda self: nn.Linear(self.WIDTH, self.WIDTH),
    "halves": lambda self: nn.Linear(3, 3),
    "view": lambda self: nn.Linear(3, 3),
}


def test_cuts_of_random_networks_are_what_their_definition_says():
    cuts = others = 0
    for seed in range(300):
        torch.manual_seed(seed)
        model = Program(seed).eval()
        found = trace(model, torch.zeros(2, 3, 8, 8))
        inner = [layer for layer in found if layer.same_as != found[-1].same_as]  # not the output
        measured = cuts_by_definition(model, inner, 8)
        assert measured == {layer.name: layer.is_cut for layer in inner}, (seed, model.plan)
        cuts += sum(measured.values())
        others += len(measured) - sum(measured.values())
    assert cuts > 100 and others > 100


class Detached(nn.Module):
    """A skip connection that autograd does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Linear(192, 6), nn.Linear(6, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images.flatten(1))
        return self.fc(self.body(x) + x.detach())


def test_a_detached_skip_is_seen_with_weights_and_without():
    for device in ("cpu", "meta"):
        found = trace(Detached().to(device), torch.zeros(2, 3, 8, 8, device=device))
        cuts = {layer.name: layer.is_cut for layer in found}
        assert cuts == {"stem": True, "body": False, "fc": False}


def test_the_output_that_counts_decides_what_is_a_cut():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fc = nn.Linear(192, 6), nn.Linear(6, 5)

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            features = self.stem(images.flatten(1))
            return features, self.fc(features)

    images = torch.zeros(2, 3, 8, 8)
    assert [layer.is_cut for layer in trace(Both(), images)] == [False, False]
    found = trace(Both(), images, output=lambda result: result[1])
    assert [layer.is_cut for layer in found] == [True, False]


# --- Which axis counts what -----------------------------------------------------------------------


class Odd(nn.Module):
    """Tokens first, windows, a layer that sees no image, and one that sees pairs of images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.windows, self.tokens = nn.Conv2d(4, 4, 1), nn.Linear(4, 4)
        self.position, self.pairs = nn.Linear(4, 4), nn.Identity()
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        n = len(x)
        halves = torch.cat(x.chunk(2, 3))
        halves = self.windows(halves)
        tokens = x.flatten(2).permute(2, 0, 1)
        tokens = self.tokens(tokens) + self.position(torch.ones(64, 1, 4).to(x))
        pooled = tokens.mean(0)
        self.pairs(pooled @ pooled.T)
        return self.fc(pooled) + halves.view(2, n, 4, -1).mean((0, 2, 3))[:, None]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_batch_is_the_axis_that_follows_the_number_of_images(device):
    found = trace(Odd().to(device), torch.zeros(2, 3, 8, 8, device=device))
    axes = {layer.name: (layer.batch_axis, layer.shape) for layer in found}
    assert axes == {
        "stem": (0, (4, 8, 8)),
        "windows": (None, ()),
        "position": (None, ()),
        "tokens": (1, (64, 4)),
        "pairs": (None, ()),
        "fc": (0, (5,)),
    }
    assert not any(layer.is_cut for layer in found if layer.batch_axis != 0)


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 1)
        self.norm, self.mix, self.act = nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU()
        self.block = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16))
        self.fc = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.patch(images).permute(0, 2, 3, 1))
        x = self.act(self.mix(x))
        x = x + self.block(x)
        return self.fc(x.mean((1, 2)))


@pytest.mark.parametrize(("height", "width"), [(16, 8), (8, 16), (16, 16), (8, 8), (4, 8)])
def test_channels_are_what_modules_take_for_them_whatever_the_sizes(height, width):
    """With 16 channels, so that heights and widths may be mistaken for them."""
    images = torch.zeros(2, 3, height, width)
    first = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Identity(),
        nn.Conv2d(16, 16, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    assert [layer.channel_axis for layer in trace(first, images)] == [0] * 8
    found = {layer.name: layer for layer in trace(ChannelsLast(), images)}
    assert found["patch"].channel_axis == 0
    for name in ("norm", "mix", "act", "block.0", "block.1", "block"):
        assert found[name].shape == (height, width, 16) and found[name].channel_axis == 2, name


def test_channels_of_sequences_may_come_first_too():
    model = nn.Sequential(
        nn.Flatten(2), nn.Conv1d(3, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(434, 5)
    )
    found = trace(model, torch.zeros(2, 3, 8, 8))
    assert [(layer.shape, layer.channel_axis) for layer in found[1:3]] == [((7, 62), 0)] * 2


def test_channels_that_nothing_tells_are_left_open():
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.silent, self.fc = Silent(), nn.Linear(96, 5)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(self.silent(images.reshape(len(images), 8, 4, 3)).flatten(1))

    silent, _ = trace(Net(), torch.zeros(2, 3, 4, 8))
    assert silent.shape == (8, 4, 3) and silent.channel_axis is None


LAYOUTS = {
    "nested": (lambda x: torch.nested.as_nested_tensor(list(x)), None),
    "jagged": (lambda x: torch.nested.as_nested_tensor(list(x), layout=torch.jagged), None),
    "sparse": (Tensor.to_sparse, 0),
    "sparse rows": (Tensor.to_sparse_csr, 0),
}


@pytest.mark.filterwarnings("ignore:(The PyTorch API of nested|Sparse CSR)")
@pytest.mark.parametrize(("convert", "axis"), LAYOUTS.values(), ids=LAYOUTS)
def test_layers_may_be_laid_out_as_no_dense_tensor_is(convert, axis):
    class Convert(nn.Module):
        def forward(self, x):
            return convert(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner, self.fc = nn.Linear(6, 5), Convert(), nn.Linear(5, 3)

        def forward(self, images):
            x = self.stem(images)
            self.inner(x)
            return self.fc(x)

    found = trace(Net(), torch.randn(2, 6))
    assert [layer.batch_axis for layer in found] == [0, axis, 0]
    assert found[1].shape == (() if axis is None else (5,)) and found[0].is_cut


class Named(NamedTuple):
    hidden: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True)
class State:
    hidden: Tensor
    loss: Tensor | None = None


# What a block returns that has computed `h`, how the rest gets at it, and whether that is a cut.
RETURNED = {
    "tuple": (lambda h: (h,), lambda out: out[0], True),
    "tuple with weights": (lambda h: (h, torch.ones(3)), lambda out: out[0], True),
    "tuple in a tuple": (lambda h: ((h, None), None), lambda out: out[0][0], True),
    "dict": (lambda h: {"h": h, "mask": None}, lambda out: out["h"], True),
    "named tuple": (Named, lambda out: out.hidden, True),
    "dataclass": (State, lambda out: out.hidden, True),
    "loss first": (lambda h: (h.mean(), h), lambda out: out[1], True),
    "the same twice": (lambda h: (h, h), lambda out: out[0] + out[1], False),
    "two that are used": (lambda h: (h, h.sin()), lambda out: out[0] + out[1], False),
    "the second is used": (lambda h: (h, h.sin()), lambda out: out[1], False),
    "list": (lambda h: [h], lambda out: out[0], False),  # it may be kept, to be appended to
}


class Returning(nn.Module):
    def __init__(self, wrap) -> None:
        super().__init__()
        self.linear, self.wrap = nn.Linear(5, 5), wrap

    def forward(self, x):
        return self.wrap(self.linear(x).relu())


@pytest.mark.parametrize(("wrap", "unwrap", "is_cut"), RETURNED.values(), ids=RETURNED)
def test_a_network_goes_on_from_the_first_tensor_that_a_block_returns(wrap, unwrap, is_cut):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.fc = nn.Linear(6, 5), Returning(wrap), nn.Linear(5, 3)

        def forward(self, images):
            return self.fc(unwrap(self.block(self.stem(images))))

    model, images = Net().eval(), torch.randn(4, 6)
    found = {layer.name: layer for layer in trace(model, torch.randn(2, 6))}
    assert found["block"].is_cut == is_cut and found["stem"].is_cut
    assert found["block"].shape == (5,)
    if is_cut:
        activation = run_to(model, ["block"], images)["block"]
        assert torch.equal(Back(model, "block")(activation, torch.zeros(4, 6)), model(images))
