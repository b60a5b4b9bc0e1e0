"""Networks with the activations at their cuts kept, as far as memory allows."""

import pytest
import torch

from memtool import data
from memtool.checkpoints import Checkpoint
from memtool.layers import Layer
from memtool.stitching import chosen_cuts
from memtool.stitching.activations import CachedNetwork, Examples, fitting


def test_the_last_layers_are_kept_first():
    def layer(name: str, size: int) -> Layer:
        return Layer(name, "Module", (size,), True, name)

    layers = [layer("a", 100), layer("b", 40), layer("c", 50), layer("d", 10)]
    kept = fitting(layers, examples=10, memory=4 * 10 * 100)
    assert [found.name for found in kept] == ["d", "c", "b"]


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_kept_or_computed_again_it_is_the_networks_activation_and_its_logits(runs, memory):
    checkpoint = Checkpoint.open(runs.clean)
    examples = Examples.of(data.load("digits"), torch.device("cpu"))
    chosen = chosen_cuts([checkpoint], checkpoint, ["block2", "block5"])[runs.clean]
    cuts = [cut.layers[0] for cut in chosen]
    cached = CachedNetwork(checkpoint, cuts, examples, memory)
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
