"""Stages of networks, by the names of their layers."""

import pytest

from memtool import MemtoolError
from memtool.figures.stages import stage_ends, stage_of


@pytest.mark.parametrize(
    ("layer", "stage"),
    [
        ("layer1.0.conv1", "layer1"),
        ("layer4", "layer4"),
        ("front.layer2.1.bn1", "front.layer2"),
        ("block3.0", "block3"),
        ("features.denseblock2.denselayer4.conv1", "features.denseblock2"),
        ("features.0.1", "features.0"),
        ("stages.2.blocks.1.norm", "stages.2"),
        ("blocks.11.mlp", "blocks.11"),
        ("encoder.layers.encoder_layer_3.mlp", "encoder.layers.encoder_layer_3"),
        ("conv1", None),
        ("blocks", None),
        ("layer_norm", None),
        ("fc", None),
    ],
)
def test_the_stage_of_a_layer(layer, stage):
    assert stage_of(layer) == stage


def test_the_last_layer_of_a_stage_ends_it():
    layers = ["conv1", "layer1.0.conv1", "layer1.0", "layer1", "layer2.0", "layer2", "fc"]
    assert stage_ends(layers) == {3: "layer1", 5: "layer2"}
    assert stage_ends(layers[:-2]) == {3: "layer1", 4: "layer2"}


def test_stages_of_one_layer_each_have_no_ends():
    assert stage_ends(["block1", "block2", "block3", "fc"]) == {}
    assert stage_ends(["conv1", "conv2"]) == {}


def test_layers_may_be_marked_by_name():
    assert stage_ends(["a.0", "a.1", "b.0"], ["b.?", "a.0"]) == {0: "a.0", 2: "b.0"}
    with pytest.raises(MemtoolError, match=r"no mark matches 'c\*'; the layers in the table are"):
        stage_ends(["a.0", "a.1"], ["c*"])
