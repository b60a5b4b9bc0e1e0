"""Which layers are compared with which."""

from pathlib import Path

import pytest

from memtool import MemtoolError, layers
from memtool.checkpoints.checkpoint import Checkpoint
from memtool.models.spec import ModelSpec
from memtool.similarity import pairs as pairing
from memtool.similarity.settings import Pairs


def test_a_stitched_models_parts_correspond_by_their_bare_names():
    def named(*names):
        found = [layers.Layer(name, "Conv2d", (4,), False, name) for name in names]
        checkpoint = Checkpoint(Path("x.safetensors"), {}, ModelSpec("none"), {}, {})
        return pairing.Selection(checkpoint, found, ["all"])

    stitched, plain = named("front.a", "stitching", "back.b"), named("a", "b")
    pairs = pairing.paired(stitched, plain, Pairs.same)
    assert [(a.name, b.name) for a, b in pairs] == [("front.a", "a"), ("back.b", "b")]
    with pytest.raises(MemtoolError, match="--pairs all"):
        pairing.paired(named("c"), plain, Pairs.same)
