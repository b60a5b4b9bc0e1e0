"""Networks with the activations at their cuts kept, as far as memory allows."""

import json

import pytest
import torch

from memtool import MemtoolError, data
from memtool.checkpoints import Checkpoint
from memtool.layers import Layer, footprint
from memtool.layers.footprint import WORKSPACE, LiveBytes
from memtool.models import Connector, StitchingLayer
from memtool.stitching.activations import (
    CachedNetwork,
    Examples,
    Share,
    fitting,
    memory_shares,
    step_footprint,
)
from memtool.stitching.cuts import chosen_cuts


def test_the_last_layers_are_kept_first():
    def layer(name: str, size: int) -> Layer:
        return Layer(name, "Module", (size,), True, name)

    layers = [layer("a", 100), layer("b", 40), layer("c", 50), layer("d", 10)]
    kept = fitting(layers, examples=10, memory=4 * 10 * 100)
    assert [found.name for found in kept] == ["d", "c", "b"]


@pytest.mark.parametrize("share", [Share(0, 7), Share(1 << 30, 256)])
def test_kept_or_computed_again_it_is_the_networks_activation_and_its_logits(runs, share):
    checkpoint = Checkpoint.open(runs.clean)
    examples = Examples.of(data.load("digits"), torch.device("cpu"))
    chosen = chosen_cuts([checkpoint], checkpoint, ["block2", "block5"])[runs.clean]
    cuts = [cut.layers[0] for cut in chosen]
    cached = CachedNetwork(checkpoint, cuts, examples, share)
    some = torch.tensor([3, 1500, 7])
    network = checkpoint.network(torch.device("cpu"))
    expected = network(examples.images[some])
    for cut in cuts:
        activation = cached.activation(cut.name, some)
        assert activation.shape == (3, *cut.shape)
        found = cached.logits_from(cut.name, activation)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    whole = network(examples.images[examples.test_indices]).argmax(1)
    assert cached.accuracy == (whole == examples.test_labels).double().mean().item()


def test_memory_is_shared_between_two_networks_their_passes_and_what_is_kept(runs):
    networks = [Checkpoint.open(path) for path in (runs.noisy, runs.clean)]
    footprint = networks[0].footprint()
    for memory in (2 * footprint.of(1), 2**18, 2**22, 2**30):
        shares = memory_shares(memory, networks, examples=1797)
        assert shares.keys() == {runs.noisy, runs.clean}
        share = shares[runs.noisy]
        assert 1 <= share.batch <= 1797 and share.kept >= 0
        assert share.kept + footprint.of(share.batch) == memory // 2
        if memory > 2**16:  # no pass takes more than half of it
            assert footprint.of(share.batch) <= memory // 4
    assert share.batch == 1797
    with pytest.raises(MemtoolError, match="takes .* KiB for a single example"):
        memory_shares(2 * footprint.of(1) - 2, networks, examples=1797)


def test_no_pass_takes_more_examples_than_its_share(runs):
    checkpoint, seen = Checkpoint.open(runs.clean), []
    examples = Examples.of(data.load("digits"), torch.device("cpu"))
    cut = chosen_cuts([checkpoint], checkpoint, ["block2"])[runs.clean][0].layers[0]
    network = CachedNetwork(checkpoint, [cut], examples, Share(0, batch=50))
    network.network.model.block1.register_forward_hook(
        lambda module, inputs, output: seen.append(len(output))
    )
    assert sum(len(part) for part in network.training_batches("block2", 50)) == examples.train
    assert len(network.predictions) == len(examples.test_labels)
    assert max(seen) == 50 and sum(seen) >= len(examples.labels)


TYPES = """
import torch
from torch import nn

class Convert(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(x)

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Linear(64, 16)
        self.wide = Convert(lambda x: x.double() * (1 + 2.0**-40))
        self.spectrum = Convert(torch.fft.fft)
        self.real = Convert(lambda x: (x.real + x.imag).float())
        self.rounded = Convert(lambda x: x.bfloat16())
        self.levels = Convert(lambda x: (x * 10).long())
        self.fc = nn.Linear(16, num_classes)

    def forward(self, images):
        x = self.real(self.spectrum(self.wide(self.stem(images.flatten(1)))))
        return self.fc(self.levels(self.rounded(x)) / 10)
"""


@pytest.mark.parametrize("memory", ["4GiB", "64KiB"])
def test_activations_of_every_type_resume_the_network_itself(run, tmp_path, memory):
    (tmp_path / "net.py").write_text(TYPES)
    path, model = tmp_path / "n.safetensors", ("--model", f"{tmp_path}/net.py:Net")
    trained = run("train", *model, "--data", "digits", "--epochs", 1, "-o", path, "-q")
    assert trained.code == 0, trained.stderr
    command = ("stitch", path, path, *model, "--memory", memory, "--format", "jsonl")
    result = run(*command, "--connector", "none", "--epochs", 0)
    assert result.code == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    cuts = ["stem", "wide", "spectrum", "real", "rounded", "levels"]
    assert [row["front_layer"] for row in rows] == cuts
    (loss,) = {row["loss"] for row in rows}
    assert {row["agreement"] for row in rows} == {1.0}
    refused = run(*command, "--at", "spectrum", "--epochs", 0)
    assert refused.code == 1 and "complex128, no real numbers" in refused.stderr


@pytest.mark.parametrize("name", ["block1", "block4"])
@pytest.mark.parametrize("is_small", [True, False])
def test_the_memory_of_a_training_step_is_what_lives_at_once_in_one(
    runs, name, is_small, monkeypatch
):
    if not is_small:
        monkeypatch.setitem(footprint.__globals__, "SMALL_MODEL", 0)
    checkpoint = Checkpoint.open(runs.clean)
    cut = next(one for one in checkpoint.trace((1, 8, 8)).layers if one.name == name)
    layer = StitchingLayer(Connector.conv1x1, cut.shape, cut.shape)
    step = step_footprint((checkpoint, checkpoint), (cut, cut), lambda: layer)
    examples = Examples.of(data.load("digits"), torch.device("cpu"))
    front, back = (CachedNetwork(checkpoint, [], examples, Share(0, 256)) for _ in range(2))
    with LiveBytes() as live:
        activation = front.activation(name, torch.arange(100))
        back.logits_from(name, layer(activation)).sum().backward()
    assert 0.7 < WORKSPACE * max(live.history) / step.of(100) < 1.3
