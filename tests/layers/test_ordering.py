"""Whether the rows of activations follow the order of the images."""

import pytest
import torch
from torch import nn

from memtool.layers import misplaced


class Net(nn.Module):
    """`inner` is given what `change` makes of the images, (n, 6), and `outer` what it returns,
    changed back."""

    def __init__(self, change, back) -> None:
        super().__init__()
        self.change, self.back = change, back
        self.inner, self.outer = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, images):
        return self.outer(self.back(self.inner(self.change(images)), images))


def order(images):
    """By brightness, as sequences are sorted by their length."""
    return images.sum(1).argsort()


NETS = {
    "as they come": (lambda x: x, lambda y, x: y, set()),
    "reversed": (lambda x: x.flip(0), lambda y, x: y.flip(0), {"inner"}),
    "rolled": (lambda x: x.roll(1, 0), lambda y, x: y.roll(-1, 0), {"inner"}),
    "sorted": (lambda x: x[order(x)], lambda y, x: y[order(x).argsort()], {"inner"}),
    "never sorted back": (lambda x: x[order(x)], lambda y, x: y, {"inner", "outer"}),
    # The result depends on the other images, too: that is told of the model, not of its layers.
    "beside their mean": (lambda x: x - x.mean(0), lambda y, x: y, set()),
    "all alike": (lambda x: x * 0, lambda y, x: y, set()),
    "a part of them": (lambda x: x[1:], lambda y, x: nn.functional.pad(y, (0, 0, 1, 0)), set()),
    "not a number": (lambda x: x * torch.nan, lambda y, x: y, set()),
}


@pytest.mark.parametrize(("change", "back", "expected"), NETS.values(), ids=NETS)
@pytest.mark.parametrize("n", [5, 9])
def test_rows_that_are_those_of_other_images(change, back, expected, n):
    generator = torch.Generator().manual_seed(0)
    model = Net(change, back).eval()
    images = torch.randn(n, 6, generator=generator)
    uneven = set() if len(change(images)) == n else {"inner"}
    assert misplaced(model, model, {"inner": 0, "outer": 0}, images) == (expected, set(), uneven)


class Masking(nn.Module):
    """Puts a mask beside what it is given, (n, 6)."""

    def __init__(self, mask, value) -> None:
        super().__init__()
        self.mask, self.value = mask, value

    def forward(self, x):
        return torch.cat([x, self.mask(x[:, :2], self.value)], 1)


MASKS = {
    "filled": torch.full_like,
    "added": torch.add,
    "an outlier": torch.mul,  # no mask, but as large
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(
    "value", [-999, -1e4, -65504, -1e6, -1e9, torch.finfo(torch.float32).min, -torch.inf]
)
@pytest.mark.parametrize(
    ("change", "back", "moved", "mixed"),
    [
        (lambda x: x, lambda y, x: y, set(), set()),
        (*NETS["sorted"][:2], {"inner"}, set()),
        (lambda x: x - x.mean(0), lambda y, x: x, set(), {"inner"}),
    ],
    ids=["as they come", "sorted", "mixed"],
)
def test_a_mask_hides_nothing(mask, value, change, back, moved, mixed):
    model = Net(change, lambda y, x: back(y[:, :6], x)).eval()
    model.inner, model.outer = Masking(mask, value), nn.Linear(6, 4)
    images = torch.randn(33, 6, generator=torch.Generator().manual_seed(0))
    assert misplaced(model, model, {"inner": 0, "outer": 0}, images) == (moved, mixed, set())


@pytest.mark.parametrize("is_sorted", [True, False])
def test_another_order_is_found_though_rows_depend_on_others_a_little(is_sorted):
    sort, back, _ = NETS["sorted" if is_sorted else "as they come"]
    model = Net(sort, back).eval()
    model.inner = nn.BatchNorm1d(6, affine=False, track_running_stats=False)
    model.outer = nn.Linear(6, 4)
    images = torch.randn(33, 6, generator=torch.Generator().manual_seed(0))
    moved, mixed, uneven = misplaced(model, model, {"inner": 0, "outer": 0}, images)
    assert moved == ({"inner"} if is_sorted else set()) and not mixed and not uneven


def moves(n):
    """Orders that images are often put into, with each step that n allows."""
    for step in range(1, n):
        chunks = torch.arange(n).split(step)
        yield torch.arange(n).roll(step)
        yield torch.cat(chunks[::-1])
        yield torch.cat([chunk.flip(0) for chunk in chunks])
        yield torch.cat([torch.arange(n)[start::step] for start in range(step)])


@pytest.mark.parametrize("n", [4, 10, 16, 33])
def test_no_order_passes_for_that_of_the_images_or_for_a_mixture(n):
    images = torch.randn(n + 1, 6, generator=torch.Generator().manual_seed(0))
    for order in moves(n):
        if (order != torch.arange(n)).any():
            model = Net(lambda x, o=order: x[o], lambda y, x, o=order: y[o.argsort()]).eval()
            found = misplaced(model, model, {"inner": 0, "outer": 0}, images)
            assert found == ({"inner"}, set(), set()), order


@pytest.mark.parametrize(
    "kind",
    [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64, torch.complex64],
    ids=str,
)
@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (0,)])
def test_activations_of_any_type_and_shape(kind, shape):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 2, (9, *shape), generator=generator).to(kind)
    for change in (lambda x: x, lambda x: x.flip(0)):
        model = nn.Sequential(nn.Identity())
        is_changed = bool(shape != (0,) and (change(images[:-1]) != images[:-1]).any())
        run = lambda some, model=model, change=change: model(change(some))  # noqa: E731
        expected = {"0"} if is_changed else set()
        assert misplaced(model, run, {"0": 0}, images).another_order == expected


def test_the_images_may_lie_along_another_axis():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 4, generator=generator)
    for flipped in (False, True):
        model = nn.Sequential(nn.Identity())

        def run(some, model=model, flipped=flipped):
            return model((some.flip(0) if flipped else some).movedim(0, 1))

        expected = {"0"} if flipped else set()
        assert misplaced(model, run, {"0": 1}, images).another_order == expected


def test_rows_that_mix_images_though_the_result_does_not():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.after = nn.Softmax(0), nn.Identity()

        def forward(self, images):
            self.after(self.norm(images))
            return self.after(images)

    images = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    axes = {"norm": 0, "after": 0, "after_1": 0}
    model = Mixed()
    assert misplaced(model, model, axes, images) == (set(), {"norm", "after"}, set())


MIXTURES = {
    "with the one before": lambda x: x + x.roll(1, 0) / 2,
    "of pairs": lambda x: x - x.view(-1, 2, x.shape[1]).mean(1).repeat_interleave(2, 0),
    "with the mean": lambda x: x - x.mean(0),
}


@pytest.mark.parametrize("mix", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("width", [1, 2])
def test_on_a_line_too_a_mixture_is_in_no_other_order(mix, width):
    class Gate(nn.Module):
        """One number or two of an image, of which the result makes nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Identity()

        def forward(self, images):
            self.gate(mix(images[:, :width]))
            return images

    model = Gate()
    for seed in range(5):
        images = torch.randn(65, 6, generator=torch.Generator().manual_seed(seed))
        assert misplaced(model, model, {"gate": 0}, images) == (set(), {"gate"}, set())


@pytest.mark.parametrize("width", [1, 2, 6])
def test_another_order_of_few_features_is_found(width):
    sort, _, _ = NETS["sorted"]
    model = Net(lambda x: sort(x)[:, :width], lambda y, x: x).eval()
    model.inner, model.outer = nn.Identity(), nn.Linear(6, 4)
    for n in (5, 65):
        images = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
        found = misplaced(model, model, {"inner": 0, "outer": 0}, images)
        assert found == ({"inner"}, set(), set())
