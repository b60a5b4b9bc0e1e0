"""Networks: the loading of weights, and images in the memory format that suits them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from memtool import MemtoolError, models
from memtool.checkpoints import Network
from memtool.checkpoints.network import load_weights
from memtool.models import ModelSpec, nets


def test_loading_weights_copies_none_of_them():
    model = models.skeleton(ModelSpec("resnet18", {"width": 8}))
    tensors = nets.resnet18(width=8).state_dict()
    load_weights(model, tensors, Path("x"))
    for key, value in model.state_dict().items():
        assert value.data_ptr() == tensors[key].data_ptr()


def test_counts_of_batches_may_be_missing():
    model = nets.digits_cnn(2)
    tensors = {k: v for k, v in nets.digits_cnn(2).state_dict().items() if "num_batches" not in k}
    load_weights(model, tensors, Path("old"))
    assert torch.equal(model.fc.weight, tensors["fc.weight"])
    assert model.block1.norm.num_batches_tracked == 0


def test_counts_of_batches_may_be_missing_under_several_names():
    norm = nn.BatchNorm1d(2)
    model = nn.ModuleDict({"a": norm, "b": norm})
    tensors = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    load_weights(model, tensors, Path("old"))
    tensors["b.weight"] = tensors["b.weight"] + 1
    with pytest.raises(MemtoolError, match="old: a.weight and b.weight are one tensor"):
        load_weights(model, tensors, Path("old"))


def test_a_tensor_of_another_kind_is_no_weight():
    tensors = nets.digits_cnn(2).state_dict()
    tensors["fc.bias"] = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(MemtoolError, match="x: its tensor fc.bias is of type torch.int64"):
        load_weights(nets.digits_cnn(2), tensors, Path("x"))


@pytest.mark.parametrize("count, loaded", [(7.0, 7), (3.5, 0), (float("inf"), 0)])
def test_whole_numbers_may_be_of_a_floating_type(count, loaded):
    class Indexed(nn.BatchNorm1d):
        def __init__(self):
            super().__init__(2)
            self.register_buffer("index", torch.zeros(2, dtype=torch.int64))
            self.register_buffer("mask", torch.zeros(2, dtype=torch.bool))

    model = nn.ModuleList([Indexed()])
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    tensors["0.num_batches_tracked"] = torch.tensor(count).half()
    tensors["0.index"] += torch.tensor([-3, 5])
    tensors["0.mask"][1] = 1
    load_weights(model, tensors, Path("x"))
    found = model.state_dict()
    assert found["0.num_batches_tracked"].item() == loaded
    assert found["0.index"].tolist() == [-3, 5] and found["0.mask"].tolist() == [False, True]
    for name, number in (("0.index", 0.5), ("0.mask", 2.0), ("0.index", float("nan"))):
        wrong = {**tensors, name: torch.full((2,), number)}
        with pytest.raises(MemtoolError, match=f"x: its tensor {name} is of type torch.float32"):
            load_weights(model, wrong, Path("x"))


@pytest.mark.parametrize(
    "largest, saved, wanted, is_taken",
    [
        (255, torch.bfloat16, torch.int64, True),
        (256, torch.bfloat16, torch.int64, False),  # or 257, rounded
        (-256, torch.bfloat16, torch.int64, False),
        (1020, torch.bfloat16, torch.int32, False),
        (2047, torch.float16, torch.int64, True),
        (2048, torch.float16, torch.int64, False),
        (15, torch.float8_e4m3fn, torch.int64, True),
        (16, torch.float8_e4m3fn, torch.int64, False),
        (2**24 - 1, torch.float32, torch.int64, True),
        (2**24, torch.float32, torch.int64, False),
        (200, torch.float32, torch.int8, False),
        (255, torch.int64, torch.uint8, True),
        (256, torch.int64, torch.uint8, False),
        (2**31, torch.int64, torch.int32, False),
        (2, torch.uint8, torch.bool, False),
        (1, torch.complex64, torch.int64, False),
    ],
)
def test_indices_of_another_type_are_taken_if_they_are_sure(largest, saved, wanted, is_taken):
    model = nn.Module()
    model.register_buffer("index", torch.zeros(2, dtype=wanted))
    tensors = {"index": torch.tensor([1, largest]).to(saved)}
    if is_taken:
        load_weights(model, tensors, Path("x"))
        assert model.index.dtype == wanted and model.index.tolist() == [1, largest]
    else:
        with pytest.raises(MemtoolError, match=f"x: its tensor index .* original, .* of {wanted}"):
            load_weights(model, tensors, Path("x"))


@pytest.mark.parametrize(
    "saved, n", [(torch.bfloat16, 300), (torch.float16, 3000), (torch.float8_e4m3fn, 40)]
)
def test_rounded_indices_are_the_models_own(saved, n):
    own = torch.arange(n)
    model = nn.Module()
    model.register_buffer("index", own.clone())
    rounded = own.to(saved)
    assert not torch.equal(rounded.long(), own)
    load_weights(model, {"index": rounded}, Path("x"))
    assert torch.equal(model.index, own) and model.index.dtype == torch.int64
    refused = "is of type .*, the model's is of torch.int64, and its numbers may have changed"
    for others in (rounded.double().flip(0).to(saved), rounded.double().sub(1).to(saved)):
        with pytest.raises(MemtoolError, match=refused):
            load_weights(model, {"index": others}, Path("x"))
    model.to("meta")
    with pytest.raises(MemtoolError, match=refused):
        load_weights(model, {"index": rounded}, Path("x"))


def test_a_network_takes_images_with_channels_last_where_it_can_do_with_it():
    class Viewing(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).view(len(x), -1)

    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    plain, viewing = (
        Network(model, [0.5] * 3, [0.2] * 3) for model in (nn.Conv2d(3, 8, 3), Viewing(3, 8, 3))
    )
    assert plain.fastest(images).memory_format is torch.channels_last
    assert viewing.fastest(images).memory_format is None
    assert viewing.model.weight.is_contiguous()


def test_channels_come_last_also_in_a_network_whose_images_have_but_one():
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    network = Network(nn.Conv2d(1, 8, 3), [0.5], [0.2])
    expected = network.run(images)
    found = network.fastest(images).run(images)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected)


class ReadsStrides(nn.Conv2d):
    """Takes memory as it lies, whatever its order."""

    def forward(self, x):
        x = super().forward(x)
        return x.as_strided((len(x), x[0].numel()), (x[0].numel(), 1))


class AsksForContiguous(nn.Conv2d):
    def forward(self, x):
        assert x.is_contiguous(), "not contiguous"
        return super().forward(x)


@pytest.mark.parametrize("make", [ReadsStrides, AsksForContiguous])
def test_a_network_that_gives_other_results_with_channels_last_keeps_its_format(make):
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    network = Network(make(3, 8, 3), [0.5] * 3, [0.2] * 3)
    assert network.fastest(images).memory_format is None


def test_logits_are_those_of_the_classes_on_record_where_there_are_several():
    class Two(nn.Module):
        def forward(self, x):
            return x.flatten(1), x.flatten(1)[:, :2]

    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    for classes, width in ((2, 2), (4, 4), (None, 4), (7, 4)):
        network = Network(Two(), [0.5], [0.2], classes)
        assert network(images).shape == (4, width) and network.width(images) == width
    with pytest.raises(MemtoolError, match="Identity returns .4, 1, 2, 2., in which there are no"):
        Network(nn.Identity(), [0.5], [0.2])(images)


def test_weights_that_are_not_finite_are_named(caplog):
    model = nn.Linear(3, 2)
    weights = {"weight": torch.full((2, 3), float("nan")), "bias": torch.zeros(2)}
    load_weights(model, weights, Path("a.safetensors"))
    assert caplog.messages == [
        "a.safetensors: not all numbers in weight are finite; nor are activations that depend on "
        "them"
    ]


@pytest.mark.parametrize("type_", [torch.float32, torch.float16, torch.bool, torch.complex64])
def test_images_that_are_no_whole_numbers_are_refused(type_):
    network, images = Network(nn.Flatten(), [0.5], [0.2]), torch.randint(0, 2, (2, 1, 3, 3))
    told = f"images are uint8, 0 to 255, not {str(type_)[6:]}"
    for use in (network, network.run, network.normalized, network.fastest):
        with pytest.raises(MemtoolError, match=told):
            use(images.to(type_))
    assert torch.equal(network(images), network(images.to(torch.uint8)))


def test_vectors_are_floats():
    network, vectors = Network(nn.Identity(), [0.5, 1.0], [0.5, 2.0]), torch.tensor([[1.0, 3.0]])
    assert network(vectors).tolist() == [[1.0, 1.0]]
