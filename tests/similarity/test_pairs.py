"""Which layers are compared with which."""

from pathlib import Path

import pytest

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint
from memtool.layers import Footprint, Layer
from memtool.models import Connector, ModelSpec, StitchingLayer, stitched_spec
from memtool.similarity import Pairs, Selection
from memtool.similarity.pairs import compared

PLAIN = ModelSpec("none")


def stitched(front, back):
    layer = StitchingLayer(Connector.none, (4,), (4,))
    return stitched_spec(front, back, "a", "a", layer)


def selected(*names, patterns=("all",), spec=PLAIN):
    found = [Layer(name, "Conv2d", (4,), False, name) for name in names]
    checkpoint = Checkpoint(Path("x.safetensors"), {}, spec, {}, {})
    return Selection(checkpoint, found, patterns, Footprint(0, 0))


def names_of(comparison):
    return [(layer.name, other.name) for layer, other in comparison.layers]


def test_a_stitched_models_parts_correspond_by_their_bare_names():
    parts = selected("front.a", "stitching", "back.b", spec=stitched(PLAIN, PLAIN))
    plain = selected("a", "b")
    assert names_of(compared(parts, plain, Pairs.same)) == [("front.a", "a"), ("back.b", "b")]
    assert names_of(compared(plain, parts, Pairs.same)) == [("a", "front.a"), ("b", "back.b")]
    with pytest.raises(MemtoolError, match="--pairs all"):
        compared(selected("c"), plain, Pairs.same)


def test_the_parts_that_a_network_has_itself_are_those_of_no_stitched_model():
    names = ["front.conv", "front", "back.conv", "back", "stitching"]
    plain, bare = selected(*names), selected("conv")
    assert names_of(compared(plain, plain, Pairs.same)) == [(name, name) for name in names]
    with pytest.raises(MemtoolError, match="--pairs all"):
        compared(plain, bare, Pairs.same)
    once = stitched(PLAIN, PLAIN)
    for spec, front, back in (
        (once, "front.", "back."),
        (stitched(once, PLAIN), "front.back.", "back."),
        (stitched(PLAIN, once), "front.", "back.back."),
    ):
        own = [front + name for name in names[:2]] + ["stitching"]
        own += [back + name for name in names[2:]] + ["back"]
        parts, expected = selected(*own, spec=spec), list(zip(own, names[:2], strict=False))
        expected += list(zip(own[3:], names[2:], strict=False))
        assert names_of(compared(parts, plain, Pairs.same)) == expected
        assert names_of(compared(parts, parts, Pairs.same)) == [(name, name) for name in own]
        with pytest.raises(MemtoolError, match="--pairs all"):
            compared(parts, bare, Pairs.same)


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
