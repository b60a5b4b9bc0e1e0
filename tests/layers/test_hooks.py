"""Layers: names, cuts against their definition, which layers are the same tensor, selection."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from memtool import MemtoolError, layers, models
from memtool.layers import Layer, first_tensor, select, trace
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
        "split": False,  # a tuple
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


# --- Outputs and patterns -------------------------------------------------------------------------


@dataclass
class Output:
    loss: None
    logits: Tensor


def test_the_first_tensor_of_whatever_a_module_gives():
    x, y = torch.zeros(1), torch.ones(1)
    for output in (x, (x, y), [None, x], {"a": x, "b": y}, Output(None, x), (None, {"a": [x]})):
        assert first_tensor(output) is x
    for output in (None, 3, "text", (), {}, [None]):
        assert first_tensor(output) is None


def test_a_model_that_gives_no_tensor_is_told():
    class Mute(nn.Module):
        def forward(self, images: Tensor) -> str:
            return "nothing"

    with pytest.raises(MemtoolError, match="Mute returns no tensor"):
        trace(Mute(), torch.zeros(2, 3, 8, 8))


def test_layers_are_selected_by_globs_in_order_of_execution():
    found = trace(nets.digits_cnn(), torch.zeros(2, 1, 8, 8))
    assert [layer.name for layer in select(found, ["fc", "block?"], "x")] == [
        *(f"block{number}" for number in range(1, 7)),
        "fc",
    ]
    assert select(found, ["all"], "x") == found
    assert len(select(found, ["*.relu"], "x")) == 6
    with pytest.raises(
        MemtoolError, match="x: no layer matches 'blok1'; nearest: block1.*--layers x"
    ):
        select(found, ["fc", "blok1"], "x")


def test_what_runs_below_the_cut_of_the_back_is_one_example_without_gradients():
    seen = []
    model = nets.digits_cnn().eval().requires_grad_(False)
    model.block2.conv.register_forward_hook(lambda _, __, out: seen.append(out))
    model.block4.conv.register_forward_hook(lambda _, __, out: seen.append(out))
    images = torch.randn(5, 1, 8, 8)
    activation = layers.run_to(model, ["block3"], images)["block3"].clone().requires_grad_()
    back = layers.Back(model, "block3")
    back(activation.detach(), images)  # finds out that one image is enough
    seen.clear()
    back(activation, images).sum().backward()
    assert [len(output) for output in seen] == [1, 5]
    assert [output.requires_grad for output in seen] == [False, True]
    assert activation.grad is not None
