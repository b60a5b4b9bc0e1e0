"""Running a model up to a layer and on from one, watched and not."""

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from memtool import MemtoolError
from memtool.layers import Back, evaluating, observed, run_to, trace
from memtool.models.nets import digits_cnn


def test_what_runs_below_the_cut_of_the_back_is_one_example_without_gradients():
    seen = []
    model = digits_cnn().eval().requires_grad_(False)
    model.block2.conv.register_forward_hook(lambda _, __, out: seen.append(out))
    model.block4.conv.register_forward_hook(lambda _, __, out: seen.append(out))
    images = torch.randn(5, 1, 8, 8)
    activation = run_to(model, ["block3"], images)["block3"].clone().requires_grad_()
    back = Back(model, "block3")
    back(activation.detach(), images)  # finds out that one image is enough
    seen.clear()
    back(activation, images).sum().backward()
    assert [len(output) for output in seen] == [1, 5]
    assert [output.requires_grad for output in seen] == [False, True]
    assert activation.grad is not None


class Frozen(nn.Module):
    """Has no gradients but those of its head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.body(self.stem(images).relu()).sigmoid()
        return self.head(x)


def test_gradients_reach_an_activation_in_a_part_that_has_none():
    model = Frozen().eval().requires_grad_(False)
    images = torch.randn(5, 6)
    activation = model.stem(images).requires_grad_()
    expected = model.head(model.body(activation.relu()).sigmoid())
    (gradient,) = torch.autograd.grad(expected.square().sum(), activation)
    back = Back(model, "stem")
    (found,) = torch.autograd.grad(back(activation, images).square().sum(), activation)
    assert torch.equal(found, gradient) and gradient.abs().max() > 0
    with torch.no_grad():
        assert not back(activation, images).requires_grad
    assert torch.is_grad_enabled()


class ReadsBatch(nn.Module):
    """Reads the size of the batch before the cut and uses it after; in place, what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.act = nn.LeakyReLU(0.3, inplace=True)
        self.fc = nn.Linear(256, 5)

    def forward(self, images: Tensor) -> Tensor:
        n = images.shape[0]
        return self.fc(self.act(self.conv(images)).reshape(n, -1))


class SizeTwice(ReadsBatch):
    """Gives the right number of rows for any number of images, and other values."""

    def forward(self, images: Tensor) -> Tensor:
        n = len(images)
        return self.fc(self.act(self.conv(images)).flatten(1)) / n


class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.last = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        token = self.token.expand(len(images), -1, -1)
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        return self.fc(self.last(self.block(torch.cat([token, tokens], 1)))[:, 0])


class OwnHooks(ClassToken):
    """Its hooks change what layers give and take, and do more harm if they run twice."""

    def __init__(self) -> None:
        super().__init__()
        for module in (self.patch, self.block, self.last):
            module.register_forward_hook(lambda module, inputs, output: 2 * output - 1)
            module.register_forward_pre_hook(lambda module, inputs: (inputs[0] / 2,))


@pytest.mark.parametrize("make", [digits_cnn, ReadsBatch, SizeTwice, ClassToken, OwnHooks])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_model_goes_on_from_any_cut_as_it_is_to_the_last_bit(make, n):
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    images = torch.randn(n, 1, 8, 8)
    expected = model(images)
    cuts = [layer.name for layer in trace(model, torch.zeros(2, 1, 8, 8)) if layer.is_cut]
    assert len(cuts) >= 2
    for cut in cuts:
        activation = run_to(model, [cut], images)[cut]
        back = Back(model, cut)
        for _ in range(2):  # the first call finds out how
            assert torch.equal(back(activation.clone(), images), expected), cut


def test_no_attempt_changes_the_activation_of_the_next():
    """The first attempt changes what it was given in place, and fails."""
    model = ReadsBatch().eval().requires_grad_(False)
    images = torch.randn(6, 1, 8, 8)
    activation = run_to(model, ["conv"], images)["conv"]
    kept = activation.clone()
    Back(model, "conv")._is_one_image_enough(activation, images)
    assert torch.equal(activation, kept)


def test_a_layer_that_there_is_not_is_told():
    model, images = digits_cnn().eval(), torch.randn(2, 1, 8, 8)
    for work in (
        lambda: run_to(model, ["blok"], images),
        lambda: Back(model, "blok")(images, images),
    ):
        with pytest.raises(MemtoolError, match="Sequential has no layer 'blok'"):
            work()


@torch.no_grad()
def test_what_is_run_for_the_sake_of_reaching_a_layer_is_not_observed():
    model = digits_cnn().eval()
    images = torch.randn(5, 1, 8, 8)
    activation = run_to(model, ["block3"], images)["block3"]
    seen: list[tuple[str, int]] = []
    names = ["block2", "block3", "block4"]
    back = Back(model, "block3")
    with observed(model, names, lambda name, x: seen.append((name, len(x)))):
        for _ in range(2):
            back(activation, images)
    assert seen == [("block3", 5), ("block4", 5)] * 2


@torch.no_grad()
def test_calls_are_numbered_as_in_the_network_itself():
    """Though the part before the cut runs again, and more than once at first."""

    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.conv = nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            return self.relu(self.conv(self.relu(self.conv(self.relu(images))))).flatten(1)

    model, images = Reused().eval(), torch.randn(3, 1, 8, 8)
    whole = [layer.name for layer in trace(model, torch.zeros(2, 1, 8, 8))]
    assert whole == ["relu", "conv", "relu_1", "conv_1", "relu_2"]
    activation = run_to(model, ["relu_1"], images)["relu_1"]
    back, seen = Back(model, "relu_1"), []
    with observed(model, whole, lambda name, x: seen.append(name)):
        back(activation, images)
        back(activation, images)
    assert seen == ["relu_1", "conv_1", "relu_2"] * 2


class Pyramid(nn.Module):
    """Calls itself on smaller images, until they are too small, in which case it raises."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 4)
        self.register_forward_pre_hook(self.check)

    @staticmethod
    def check(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if inputs[0].shape[-1] < 4:
            raise ValueError("too small")

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images).mean((2, 3))
        try:
            smaller = self(images[:, :, ::2, ::2])
        except ValueError:
            smaller = 0
        return self.fc(x + smaller)


@torch.no_grad()
def test_calls_are_numbered_through_calls_of_the_model_by_itself():
    torch.manual_seed(0)
    model, images = Pyramid().eval(), torch.randn(3, 1, 8, 8)
    large, small = (model.conv(x).mean((2, 3)) for x in (images, images[:, :, ::2, ::2]))
    expected = {
        "conv": model.conv(images),
        "conv_1": model.conv(images[:, :, ::2, ::2]),
        "fc": model.fc(small),
        "fc_1": model.fc(large + model.fc(small)),
    }
    assert [layer.name for layer in trace(model, images)] == list(expected)
    seen: list[tuple[str, Tensor]] = []
    with observed(model, expected, lambda *both: seen.append(both)):
        with pytest.raises(ValueError, match="too small"):
            model(images[..., :2])
        for _ in range(2):
            model(images)
    assert [name for name, _ in seen] == 2 * list(expected)
    assert all(torch.equal(x, expected[name]) for name, x in seen)
    for name, activation in expected.items():
        assert torch.equal(run_to(model, [name], images)[name], activation)
    assert torch.equal(Back(model, "fc")(expected["fc"], images), expected["fc_1"])


@torch.no_grad()
def test_a_fused_transformer_layer_is_itself_with_its_output_watched():
    """PyTorch fuses such a layer where there are no hooks, and rounds differently then."""
    torch.manual_seed(0)
    model = ClassToken().eval()
    images = torch.randn(5, 1, 8, 8)
    expected = model(images)
    before = copy.copy(vars(model.block))
    seen = []
    with observed(model, ["block"], lambda name, x: seen.append(x)):
        with observed(model, ["block"], lambda name, x: seen.append(x)):
            assert torch.equal(model(images), expected)
    assert len(seen) == 2 and seen[0] is seen[1]
    assert vars(model.block).keys() == before.keys() and not hasattr(model.block.forward, "watches")


@torch.no_grad()
def test_what_a_layer_gives_is_what_hooks_of_the_model_make_of_it():
    model, images = OwnHooks().eval(), torch.randn(3, 1, 8, 8)
    results: dict[str, Tensor] = {}
    for name in ("patch", "block"):
        keep = functools.partial(results.__setitem__, name)
        getattr(model, name).register_forward_hook(lambda *seen, keep=keep: keep(seen[-1]))
    model(images)
    for name, expected in results.copy().items():
        seen: list[Tensor] = []
        back = Back(model, name)
        with observed(model, [name], lambda _, x, seen=seen: seen.append(x)):
            model(images)
            back(7 * expected, images)
            back(7 * expected, images)
        assert all(map(torch.equal, seen, [expected, 7 * expected, 7 * expected]))


class Converting(nn.Module):
    """Changes its input in place; its middle is in another precision than its ends."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.stem, self.body = nn.Linear(6, 8), nn.Linear(8, 8, dtype=dtype)
        self.fc = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        images.mul_(2).add_(1)
        return self.fc(self.body(self.stem(images.flatten(1)).to(self.dtype)).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_an_activation_is_handed_on_in_the_type_of_what_it_replaces(dtype):
    model = Converting(dtype).eval()
    images = torch.randn(5, 2, 3)
    expected = model(images.clone())
    activation = run_to(model, ["body"], images.clone())["body"]
    assert activation.dtype == dtype
    one = images[:1].clone()
    for given in (activation, activation.double(), activation.float().requires_grad_()):
        assert torch.equal(Back(model, "body")(given, images), expected)
        assert torch.equal(Back(model, "body")(given, one.expand(5, 2, 3)), expected)
    assert torch.equal(one, images[:1])


def test_hooks_see_the_layers_within_a_part_that_is_compiled():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())).eval()
    images = torch.randn(3, 4)
    expected = model(images)
    model[1] = torch.compile(model[1], backend="eager")
    with torch.no_grad():
        model(images)  # compiled by now
    names = [layer.name for layer in trace(model, images)]
    assert "0" in names and any(name.endswith(".1") for name in names)
    activation = run_to(model, ["0"], images)["0"]
    assert torch.equal(Back(model, "0")(activation, images), expected)


class Transformed(nn.Module):
    """Runs one layer within a transform."""

    def __init__(self, transform: Callable[[Callable[..., Tensor], Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.fc, self.transform = nn.Linear(8, 8), nn.Linear(8, 3), transform

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.transform(lambda x: self.body(x).tanh(), images.flatten(1)))


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
        lambda f, x: torch.func.vjp(f, x)[0],
        lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
        lambda f, x: torch.func.grad(lambda x: torch.func.grad(lambda x: f(x).sum())(x).sum())(x),
    ],
    ids=["grad", "vjp", "jvp", "grad of grad"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@torch.no_grad()
def test_activations_within_a_transform_are_those_of_the_layer(transform):
    model, images = Transformed(transform).eval(), torch.randn(5, 1, 2, 4)
    expected = model.body(images.flatten(1))
    layer, _ = trace(model, images)
    assert (layer.name, layer.shape, layer.batch_axis) == ("body", (8,), 0)
    total = torch.zeros(5, 8)
    with observed(model, ["body"], lambda name, x: total.add_(x)):
        model(images)
    assert torch.allclose(total, expected) and torch.allclose(total + 1, expected + 1)
    assert torch.allclose(run_to(model, ["body"], images)["body"].mul_(2), 2 * expected)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.vmap(f)(x),
        lambda f, x: torch.vmap(f, in_dims=2, out_dims=2)(x.unsqueeze(2)).squeeze(2),
        lambda f, x: torch.vmap(torch.func.grad(lambda x: f(x).sum()))(x),
        lambda f, x: torch.func.grad(lambda x: torch.vmap(f)(x).sum())(x),
    ],
    ids=["images", "tokens", "grad within", "grad around"],
)
@torch.no_grad()
def test_a_layer_that_sees_one_image_or_token_at_a_time_has_no_axis_of_images(transform):
    model, images = Transformed(transform).eval(), torch.randn(5, 1, 2, 4)
    assert [(one.name, one.batch_axis) for one in trace(model, images)] == [
        ("body", None),
        ("fc", 0),
    ]


class Merging(nn.Linear):
    """Adds its update to the weights for eval mode, and takes it out for training."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        nn.init.constant_(self.weight, 1.0)
        self.update = nn.Parameter(torch.full((2, 3), 0.25))

    def train(self, mode: bool = True) -> nn.Module:
        if mode != self.training:
            self.weight.data += -self.update if mode else self.update
        return super().train(mode)


def test_weights_that_are_merged_in_eval_mode_are_taken_apart_again():
    first, second = Merging(), Merging()
    model = nn.Sequential(first, nn.Sequential(second, nn.BatchNorm1d(2)), nn.Dropout())
    model.add_module("again", first)
    for frozen in ([], [model], [second], [model[1]], [first, model[1][1]]):
        model.train()
        for module in frozen:
            module.eval()
        if model in frozen:
            second.train()  # alone
        modes = [module.training for module in model.modules()]
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            assert first.weight.max() == second.weight.max() == 1.25
        assert [module.training for module in model.modules()] == modes
        for module in (first, second):
            assert module.weight.min() == (1 if module.training else 1.25)
