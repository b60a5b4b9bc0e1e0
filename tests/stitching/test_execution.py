"""Training a stitching layer between two networks."""

import hashlib

import torch
from torch import nn

from memtool import data, models
from memtool.checkpoints import Checkpoint
from memtool.layers import Layer
from memtool.stitching import Direction, Init, StitchSettings
from memtool.stitching.activations import CachedNetwork, Examples, Share
from memtool.stitching.execution import Stitching
from memtool.tensors import save_tensors
from memtool.training import Optimizer, TrainConfig

DROPPING = """
from torch import nn


class Dropping(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5),
                         nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10))
"""


def digest(model: nn.Module) -> str:
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()


def test_both_networks_are_left_alone_bit_for_bit(tmp_path):
    digits = data.load("digits")
    (tmp_path / "net.py").write_text(DROPPING)
    spec = models.parse(f"{tmp_path}/net.py:Dropping")  # batch norm and dropout around the cut
    opened = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        path = tmp_path / f"{seed}.safetensors"
        metadata = {"model": spec.json(), "data": digits.metadata(), "training": {}}
        save_tensors(path, "checkpoint", models.build(spec).state_dict(), metadata)
        opened.append(Checkpoint.open(path, spec))
    cut = Layer("3", "Dropout", (16,), True, "3", channel_axis=0)
    config = TrainConfig(epochs=1, batch_size=100, optimizer=Optimizer.adam)
    settings = StitchSettings((Direction.forward,), config, init=Init.random, batch_norm=True)
    examples = Examples.of(digits, torch.device("cpu"))
    share = Share(1 << 30, batch=256)
    front, back = (CachedNetwork(network, [cut], examples, share) for network in opened)
    before = [digest(part.network.model) for part in (front, back)]

    stitching = Stitching(Direction.forward, (front, back), (cut, cut), settings)
    start = digest(stitching.layer)
    (row,) = stitching.rows()
    assert [digest(part.network.model) for part in (front, back)] == before
    assert digest(stitching.layer) != start
    for part in (front, back):
        assert not any(module.training for module in part.network.model.modules())
        assert not any(weight.requires_grad for weight in part.network.model.parameters())
        assert all(weight.grad is None for weight in part.network.model.parameters())
    # Dropout is off: the same again gives the same.
    assert list(Stitching(Direction.forward, (front, back), (cut, cut), settings).rows()) == [row]
