"""Which layers are compared with which."""

from pathlib import Path

import pytest

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint
from memtool.layers import Footprint, Layer
from memtool.models import ModelSpec
from memtool.similarity import Pairs, Selection
from memtool.similarity.pairs import compared


def selected(*names, patterns=("all",)):
    found = [Layer(name, "Conv2d", (4,), False, name) for name in names]
    checkpoint = Checkpoint(Path("x.safetensors"), {}, ModelSpec("none"), {}, {})
    return Selection(checkpoint, found, patterns, Footprint(0, 0))


def names_of(comparison):
    return [(layer.name, other.name) for layer, other in comparison.layers]


def test_a_stitched_models_parts_correspond_by_their_bare_names():
    stitched, plain = selected("front.a", "stitching", "back.b"), selected("a", "b")
    assert names_of(compared(stitched, plain, Pairs.same)) == [("front.a", "a"), ("back.b", "b")]
    with pytest.raises(MemtoolError, match="--pairs all"):
        compared(selected("c"), plain, Pairs.same)


def test_layers_chosen_by_other_patterns_correspond_in_order():
    one, other = selected("a", "b", patterns=("a", "b")), selected("c", "d", patterns=("c", "d"))
    assert names_of(compared(one, other, Pairs.same)) == [("a", "c"), ("b", "d")]
    with pytest.raises(MemtoolError, match="2 layers chosen, but 1 of"):
        compared(one, selected("c", patterns=("c",)), Pairs.same)


def test_each_layer_with_each():
    found = compared(selected("a", "b"), selected("c", "d"), Pairs.all)
    assert names_of(found) == [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]


def test_layers_that_are_one_tensor_are_computed_once():
    one = Selection(
        selected().checkpoint,
        [Layer(name, "ReLU", (4,), False, same) for name, same in (("a.relu", "a"), ("a", "a"))],
        ["all"],
        Footprint(0, 0),
    )
    found = compared(one, one, Pairs.all)
    assert len(found.layers) == 4 and found.tensors == [("a", "a")]
    assert one.tensors == ["a"] and one.widths == {"a": 4}
