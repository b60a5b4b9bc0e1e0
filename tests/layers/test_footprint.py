"""What a pass takes in memory, against what PyTorch's allocator really gave out."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from memtool import MemtoolError
from memtool.layers import Footprint, footprint
from memtool.layers.footprint import WORKSPACE
from memtool.models import nets


class Data(nn.Module):
    """Looks at values, so that it cannot run on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.conv(images))
        if x.sum().item() > 1e9:
            x = -x
        return self.head(nn.functional.dropout(x, 0.5, self.training).mean((2, 3)))


class Loop(nn.Module):
    """One operation for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.conv(image[None])[0] for image in images]).mean((2, 3))


class WideHead(nn.Module):
    """With few images the gradients of its weights make the peak, with many the activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 3000), nn.Linear(3000, 400)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(images.flatten(1)).sin().cos().exp())


class Attending(nn.Module):
    """In eval mode, PyTorch has one operation for all of each of these."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(3, 16, 2, 2)
        self.encoder = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        x = self.encoder(self.embedding(images).flatten(2).transpose(1, 2))
        return self.attention(x, x, x, need_weights=False)[0].mean(1)


class Covariance(nn.Module):
    """Images of zeros have none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images).flatten(2)
        x = x - x.mean(2, keepdim=True)
        return torch.linalg.cholesky(x @ x.mT).flatten(1)


MODELS = {
    "digits-cnn": (lambda: nets.digits_cnn(), (1, 8, 8)),
    "resnet18": (lambda: nets.resnet18(width=8), (3, 32, 32)),
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, depth=2),
        (3, 32, 32),
    ),
    "looks at values": (Data, (3, 16, 16)),
    "one image at a time": (Loop, (3, 16, 16)),
    "a wide head": (WideHead, (3, 4, 4)),
}


@pytest.fixture(params=MODELS)
def case(request):
    torch.manual_seed(0)
    build, shape = MODELS[request.param]
    return build(), shape


def allocated(model: nn.Module, shape: tuple[int, ...], batch: int, gradients: bool) -> int:
    """The peak of the bytes that PyTorch's allocator had given out during a pass."""

    def go() -> None:
        with torch.set_grad_enabled(gradients):
            result = model(torch.randn(batch, *shape))
            if gradients:
                result.sum().backward()

    go()  # what is made once and kept
    model.zero_grad(set_to_none=True)
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        go()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def live(found: Footprint, batch: int) -> float:
    """The tensors that live at once, without what kernels take beside."""
    return found.fixed + found.per_example / WORKSPACE * batch


@pytest.fixture(params=["small", "on meta"])
def way(request, monkeypatch):
    """Both ways to find a footprint, of which the size of a model decides."""
    if request.param == "on meta":
        monkeypatch.setitem(footprint.__globals__, "SMALL_MODEL", 0)


@pytest.mark.parametrize("batch", [4, 32])
def test_of_a_forward_pass_is_what_is_allocated(case, way, batch):
    model, shape = case
    found = footprint(model, shape)
    really = allocated(model.eval(), shape, batch, gradients=False)
    # Convolutions take more for themselves, for copies in the layout that the CPU's kernels like:
    # of these networks' small ones .2 of all on one CPU and .46 on another.
    assert live(found, batch) <= 1.01 * really
    assert really <= found.of(batch)


@pytest.mark.parametrize("batch", [4, 64])
def test_of_a_training_step_is_what_is_allocated(case, way, batch):
    model, shape = case
    found = footprint(model.train(), shape, gradients=True)
    really = allocated(model, shape, batch, gradients=True)
    # The ViT keeps all of its attention on the meta device, which has no kernel of its own for it.
    assert 0.93 * really <= live(found, batch) <= 1.5 * really
    assert really <= found.of(batch)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_model_that_makes_nothing_of_zeros_is_run_on_noise(way, gradients):
    assert footprint(Covariance().train(gradients), (3, 16, 16), gradients).per_example > 0


class Experts(nn.Module):
    """Each example goes to one of many experts, as its values say."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.gate = nn.Linear(size, 8)
        self.experts = nn.ModuleList(nn.Linear(size, 1000) for _ in range(8))

    def forward(self, features: Tensor) -> Tensor:
        chosen = self.gate(features).argmax(1)
        parts = [
            expert(features[chosen == i]).sum(1)
            for i, expert in enumerate(self.experts)
            if (chosen == i).any()
        ]
        return torch.cat(parts)[:, None]


class Drawing(nn.Linear):
    """Draws for each pass how much is made of the features."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).repeat(1, int(torch.randint(1, 9, ())))


@pytest.mark.parametrize("build", [Experts, lambda: Drawing(16, 10)], ids=["experts", "drawing"])
@pytest.mark.parametrize("gradients", [False, True])
def test_it_depends_on_no_chance(build, gradients):
    model = build().train(gradients)
    found = []
    for seed in range(5):
        torch.manual_seed(seed)
        found.append(footprint(model, (16,), gradients))
    assert len(set(found)) == 1
    # One expert at most works on an example, whose weights take no more with more of them.
    assert found[0].per_example < WORKSPACE * 4 * 3 * 1100


class Choosy(nn.Module):
    """Takes values up to a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit, self.inner = limit, nn.Linear(300, 4)

    def forward(self, features: Tensor) -> Tensor:
        if features.abs().max() > self.limit:
            raise ValueError("is not normalized")
        return self.inner(features)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_model_may_refuse_some_values(way, gradients):
    model = Choosy(0.1).train(gradients)
    found = footprint(model, (300,), gradients)
    assert found == footprint(model, (300,), gradients, torch.full((1, 300), 0.05))
    assert found.per_example >= footprint(model.inner, (300,), gradients).per_example


@pytest.mark.parametrize("gradients", [False, True])
def test_the_example_says_which_way_a_model_takes(gradients):
    class Padded(nn.Module):
        """Keeps the features that are not 0, of all examples the same ones."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(1, 100)

        def forward(self, features: Tensor) -> Tensor:
            return self.inner(features[:, features[0] != 0][..., None]).sum(1)

    model = Padded().train(gradients)
    few, all_ = torch.zeros(1, 300), torch.ones(1, 300)
    few[:, :3] = 1
    found = [footprint(model, (300,), gradients, one).per_example for one in (few, all_)]
    assert found[0] < found[1] / 20


@pytest.mark.parametrize("gradients", [False, True])
def test_attention_is_seen_where_it_is_fused(gradients, monkeypatch):
    model = Attending().train(gradients)
    found = [footprint(model, (3, 32, 32), gradients)]
    assert torch.backends.mha.get_fastpath_enabled()
    monkeypatch.setitem(footprint.__globals__, "SMALL_MODEL", 0)
    found.append(footprint(model, (3, 32, 32), gradients))
    small, on_meta = found
    assert small.per_example == pytest.approx(on_meta.per_example, rel=0.1)
    assert small.per_example > 4 * 4 * 256**2  # four heads, each with what each sees of each


def test_gradients_of_frozen_weights_do_not_count(way):
    model = WideHead()
    both = footprint(model, (3, 4, 4), gradients=True)
    alone = footprint(model.requires_grad_(False), (3, 4, 4), gradients=True)
    weights = sum(weight.numel() for weight in model.parameters()) * 4
    assert both.fixed - alone.fixed == pytest.approx(weights, rel=0.01)
    # The way back to the input is there nevertheless.
    assert alone.per_example > 1.2 * footprint(model, (3, 4, 4)).per_example


@pytest.mark.parametrize("build", [nets.resnet18, Data])
@pytest.mark.parametrize("gradients", [False, True])
def test_leaves_everything_as_it_is(build, way, gradients):
    model = build().train()
    state = copy.deepcopy(model.state_dict())
    random = torch.random.get_rng_state()
    footprint(model, (3, 16, 16), gradients)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_computes_nothing_where_it_need_not():
    class Counting(nn.Conv2d):
        devices: list[str] = []

        def forward(self, images: Tensor) -> Tensor:
            Counting.devices.append(images.device.type)
            return super().forward(images)

    # 3 x 2 x 40,000 x 40,000 numbers would take 38 GB.
    found = footprint(nn.Sequential(Counting(3, 2, 1), nn.ReLU()), (3, 40_000, 40_000))
    assert set(Counting.devices) == {"meta"}
    # The images and their two maps, and what the ReLU makes of those.
    assert found.per_example == WORKSPACE * 4 * (3 + 2 + 2) * 40_000**2


def test_a_model_may_take_its_examples_in_pairs(way):
    class Pairs(nn.Linear):
        def forward(self, features: Tensor) -> Tensor:
            return super().forward(features.view(-1, 2 * 10))

    found = footprint(Pairs(20, 6), (10,))
    assert found == Footprint(0, int(WORKSPACE * 4 * (10 + 6 / 2)))
    assert footprint(Pairs(20, 6).train(), (10,), gradients=True).per_example > found.per_example


def test_takes_vectors(way):
    found = footprint(nn.Linear(10, 4), (10,))
    assert found == Footprint(0, int(WORKSPACE * 4 * (10 + 4)))


@pytest.mark.parametrize("memory", [131, 160, 1000, 12345])
def test_batch_is_the_largest_that_fits(memory):
    footprint = Footprint(fixed=100, per_example=30)
    batch = footprint.batch_within(memory)
    assert footprint.of(batch) <= memory < footprint.of(batch + 1)


def test_what_cannot_fit_is_refused_with_its_size():
    found = Footprint(fixed=2**20, per_example=3 * 2**30)
    with pytest.raises(MemtoolError) as error:
        found.batch_within(2**30, "a.safetensors: a forward pass")
    assert str(error.value) == (
        "a.safetensors: a forward pass takes 3.1 GiB for a single example, but may take 1.0 GiB; "
        "allow for more (--memory), or take smaller images (--image-size)"
    )
