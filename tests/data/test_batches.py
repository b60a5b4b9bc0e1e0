"""Images that are asked for in batches: as a tensor gives them, wherever they are."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from memtool import MemtoolError
from memtool.data import HostImages, Split, bytes_on_device, on_device
from memtool.data.batches import Checksums

CPU = torch.device("cpu")


def split(count: int, seed: int = 0, *, in_file: bool = False) -> Split:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 3, 4, 5), dtype=np.uint8)
    values = np.array([zlib.crc32(image) for image in images], dtype=np.uint32)
    checksums = Checksums(values, Path("images.safetensors")) if in_file else None
    return Split(images, np.zeros(count, dtype=np.int64), checksums)


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("counts", [(9,), (4, 5), (0, 9), (9, 0)])
def test_batches_are_those_of_a_tensor(counts: tuple[int, ...], in_file: bool) -> None:
    splits = [split(count, seed, in_file=in_file) for seed, count in enumerate(counts)]
    tensor = torch.cat([torch.from_numpy(one.images) for one in splits])
    images = HostImages(splits, CPU)
    assert len(images) == 9 and images.nbytes == tensor.nbytes and images.device == CPU
    order = torch.tensor([8, 0, 4, 3, 4])
    for indices in (order, order.tolist(), slice(2, 7), slice(5), slice(7, 99), torch.tensor([])):
        expected = tensor[indices.long() if isinstance(indices, torch.Tensor) else indices]
        assert torch.equal(images[indices], expected)
    assert torch.equal(images.whole(), tensor)


class OnCard(torch.Tensor):
    """Stands for a tensor on a GPU, and counts the copies to the host."""

    device = torch.device("cuda")
    copies = 0

    def cpu(self) -> torch.Tensor:
        OnCard.copies += 1
        return self.as_subclass(torch.Tensor).clone()


def test_an_order_on_a_device_is_copied_to_the_host_once(monkeypatch) -> None:
    monkeypatch.setattr(OnCard, "copies", 0)
    one = split(20)
    images, tensor = HostImages([one], CPU), torch.from_numpy(one.images)
    orders = [torch.randperm(20) for _ in range(2)]
    for epoch, order in enumerate(orders, 1):
        there = order.clone().as_subclass(OnCard)
        for batch, expected in zip(there.split(6), order.split(6), strict=True):
            assert torch.equal(images[batch], tensor[expected])
            assert torch.equal(images[batch[1::2]], tensor[expected[1::2]])  # of one of two ranks
        assert OnCard.copies == epoch
    there.add_(1).remainder_(20)
    assert torch.equal(images[there[3:9]], tensor[(orders[1][3:9] + 1) % 20])
    with torch.inference_mode():
        other = torch.arange(6).as_subclass(OnCard)
        for shift in range(3):
            assert torch.equal(images[other.add_(shift)], tensor[other])


@pytest.mark.parametrize("index", [-1, 9])
def test_an_index_out_of_range_is_an_error(index: int) -> None:
    with pytest.raises(IndexError):
        HostImages([split(4), split(5)], CPU)[[0, index]]


def test_images_in_memory_are_a_tensor_without_a_copy() -> None:
    one = split(9)
    images = one.on(CPU)
    assert isinstance(images, torch.Tensor)
    one.images[3] = 0
    assert (images[3] == 0).all()
    assert isinstance(split(9, in_file=True).on(CPU), HostImages)
    assert isinstance(on_device([split(4), split(5)], CPU), HostImages)


def test_vectors_come_in_batches_too() -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32)
    parts = [Split(part, np.zeros(3, dtype=np.int64)) for part in (vectors[:3], vectors[3:])]
    images = HostImages(parts, CPU)
    assert torch.equal(images[[5, 1]], torch.from_numpy(vectors[[5, 1]]))
    assert torch.equal(images.whole(), torch.from_numpy(vectors))


def test_an_image_is_checked_once(monkeypatch) -> None:
    checked: list[int] = []
    crc32 = zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda image: checked.append(1) or crc32(image))
    images = split(9, in_file=True)
    checked.clear()
    host = HostImages([images], CPU)
    host[[0, 1, 2]], host[[1, 2, 3]], host[:4]
    assert len(checked) == 4
    images.images[7, 0, 0, 0] ^= 1
    with pytest.raises(MemtoolError, match="images.safetensors: is damaged .1 of 3 images"):
        host[[6, 7, 8]]
    with pytest.raises(MemtoolError):  # also the next time
        host[[7]]


@pytest.mark.parametrize("free, fit", [(2 * 9 * 60, True), (2 * 9 * 60 - 1, False)])
def test_the_memory_that_images_are_going_to_take(monkeypatch, free: int, fit: bool) -> None:
    monkeypatch.setattr("memtool.data.batches.memory_of", lambda device: free)
    splits = [split(4), split(5)]
    assert bytes_on_device(splits, torch.device("cuda")) == (9 * 60 if fit else 0)
    assert bytes_on_device(splits, CPU) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("fits", [True, False])
def test_images_go_to_a_device_whole_if_they_fit(monkeypatch, fits: bool) -> None:
    device = torch.device("cuda")
    free = 10**9 if fits else 100
    monkeypatch.setattr("memtool.data.batches.memory_of", lambda device: free)
    one = split(300, in_file=True)
    images = one.on(device)
    assert isinstance(images, torch.Tensor) == fits
    batch = images[torch.tensor([299, 0, 5], device=device)]
    assert batch.device.type == "cuda"
    assert torch.equal(batch.cpu(), torch.from_numpy(one.images)[[299, 0, 5]])
