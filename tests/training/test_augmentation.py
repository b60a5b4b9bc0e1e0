"""Random crops and flips: pixels, distribution, where they are drawn from."""

import pytest
import torch
from torchvision.transforms import functional

from memtool.training.augmentation import CropFlip


def draw(examples=400, side=32, seed=0):
    torch.manual_seed(seed)
    crop = CropFlip(examples, side, torch.device("cpu"))
    crop.draw()
    return crop


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 16, 24), (2, 5, 9)])
def test_each_image_is_the_crop_and_flip_that_torchvision_makes(shape):
    images = torch.randint(0, 256, (40, *shape), dtype=torch.uint8)
    crop = draw(100, side=min(shape[1:]))
    indices = torch.randperm(100)[:40]
    found = crop(images, indices)
    border = min(shape[1:]) // 8
    assert crop.border == border
    for image, result, index in zip(images, found, indices, strict=True):
        top, left = crop.shifts[:, index].tolist()
        expected = functional.crop(functional.pad(image, border), top, left, *shape[1:])
        if crop.mirrored[index]:
            expected = functional.hflip(expected)
        assert torch.equal(result, expected)


def test_every_shift_is_as_likely_as_any_other_and_half_are_mirrored():
    crop = draw(90_000)
    counts = torch.bincount(crop.shifts[0] * 9 + crop.shifts[1], minlength=81)
    assert len(counts) == 81
    # Of 90,000 draws with probability 1/81, at most five standard deviations from the mean.
    assert (counts - 90_000 / 81).abs().max() < 5 * (90_000 / 81) ** 0.5
    assert crop.mirrored.double().mean().item() == pytest.approx(0.5, abs=0.01)
    together = torch.stack([*crop.shifts.double(), crop.mirrored.double()])
    assert torch.corrcoef(together).fill_diagonal_(0).abs().max() < 0.02


def test_an_example_is_varied_alike_whatever_batch_it_is_in():
    images = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8)
    crop, order = draw(10, 16), torch.randperm(10)
    whole = crop(images, torch.arange(10))
    for share in order.split(3):
        assert torch.equal(crop(images[share], share), whole[share])


def test_draws_follow_from_the_seed_alone():
    first, again, other = draw(seed=1), draw(seed=1), draw(seed=2)
    assert torch.equal(first.shifts, again.shifts) and torch.equal(first.mirrored, again.mirrored)
    assert not torch.equal(first.shifts, other.shifts)
