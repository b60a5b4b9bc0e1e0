"""Our own networks."""

import pytest
import torch
import torchvision

from memtool import layers
from memtool.models import nets


def test_resnet_tensors_are_named_as_torchvisions():
    for name in ("resnet18", "resnet34", "resnet50"):
        ours = getattr(nets, name)(num_classes=7, width=8).state_dict()
        theirs = torchvision.models.get_model(name, num_classes=7).state_dict()
        assert list(ours) == list(theirs)
    full = nets.resnet18(num_classes=1000).state_dict()
    theirs = torchvision.models.resnet18().state_dict()
    differ = [key for key in full if full[key].shape != theirs[key].shape]
    assert differ == ["conv1.weight"]  # the stem


def test_resnet_keeps_the_size_of_small_images_in_its_first_stage():
    found = layers.trace(nets.resnet18(width=4, channels=1), torch.zeros(2, 1, 32, 32))
    shapes = {layer.name: layer.shape for layer in found}
    assert [shapes[f"layer{stage}"] for stage in range(1, 5)] == [
        (4, 32, 32),
        (8, 16, 16),
        (16, 8, 8),
        (32, 4, 4),
    ]
    assert shapes["fc"] == (10,)


def test_a_residual_block_calls_its_relu_twice():
    found = layers.trace(nets.resnet18(width=4), torch.zeros(2, 3, 8, 8))
    names = [layer.name for layer in found]
    assert names.index("layer1.0.relu") < names.index("layer1.0.relu_1") < names.index("layer1.0")


@pytest.mark.parametrize("size, channels", [(32, 3), (28, 1), (8, 1)])
def test_every_block_of_the_cnn_is_a_cut(size, channels):
    model = nets.cnn(num_classes=5, channels=channels, image_size=size, width=4)
    found = layers.trace(model, torch.zeros(2, channels, size, size))
    cuts = {layer.name for layer in found if layer.is_cut}
    assert {f"block{number}" for number in range(1, 9)} <= cuts
    assert found[-1].name == "fc" and found[-1].shape == (5,)
