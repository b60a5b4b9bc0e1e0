"""Where networks can be cut, and which cuts meet."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from memtool import MemtoolError
from memtool.checkpoints import Network
from memtool.layers import Layer, trace
from memtool.stitching.cuts import check, matching_cuts


def layer(name: str, *shape: int) -> Layer:
    return Layer(name, "Module", shape, True, name)


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
    block = torchvision.models.resnet.BasicBlock
    model = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=4).eval()
    found = trace(model, torch.zeros(2, 3, 32, 32))
    with pytest.raises(MemtoolError, match=r"'layer2.0.conv2' is not a cut.*'layer2.0', is"):
        matching_cuts(found, found, ["layer2.0.conv2"], "front", "back")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    network = Network(model, [0.5] * 3, [0.2] * 3)
    with pytest.raises(MemtoolError, match=r"'layer2.0.conv2' is not a cut.*'layer2.0', is"):
        check(network, "layer2.0.conv2", images, "front")


def test_a_cut_is_checked_with_the_weights_as_they_are():
    images = torch.randint(0, 256, (2, 1, 2, 3), dtype=torch.uint8)
    body, _ = trace(Leaky(False), torch.zeros(2, 1, 2, 3))
    assert body.is_cut
    check(Network(Leaky(False), [0.5], [0.2]), "body", images, "sound")
    with pytest.raises(MemtoolError, match="leaky: 'body' is not a cut.*nor is a block"):
        check(Network(Leaky(True), [0.5], [0.2]), "body", images, "leaky")


def test_layers_of_other_names_are_asked_for():
    front, back = ([layer("a", 3), layer("b", 3)], [layer("a", 3), layer("c", 3)])
    assert matching_cuts(front, back, ["a", "b=c", "a=a"], "front", "back") == [
        (front[0], back[0]),
        (front[1], back[1]),
    ]
    with pytest.raises(MemtoolError, match="back: has no layer 'b'.*--at b=BACK_LAYER"):
        matching_cuts(front, back, ["all"], "front", "back")
