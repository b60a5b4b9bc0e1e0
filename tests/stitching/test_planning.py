"""What is done at a cut: connectors between shapes, directions, settings."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.layers import Layer
from memtool.layers.tracing import channel_axis
from memtool.models import Connector, StitchingLayer
from memtool.stitching import Direction, Init, StitchSettings
from memtool.stitching.cuts import ChosenCut
from memtool.stitching.planning import connector_between, directed
from memtool.training import TrainConfig

GIB = 1 << 30


def layer(name: str, *shape: int) -> Layer:
    axis = channel_axis(shape, set(), is_square=True)
    return Layer(name, "Module", shape, True, name, channel_axis=axis)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("wanted", "front", "back", "resize", "found", "parameters"),
    [
        ("auto", (8, 4, 4), (6, 4, 4), False, "conv1x1", 8 * 6 + 6),
        ("auto", (8, 4, 4), (6, 2, 2), True, "conv1x1", 8 * 6 + 6),
        ("auto", (5,), (7,), False, "linear", 5 * 7 + 7),
        ("auto", (9, 5), (9, 7), False, "linear", 5 * 7 + 7),
        ("auto", (9, 5), (4, 7), True, "linear", 5 * 7 + 7),
        ("auto", (4, 4, 5), (4, 4, 7), False, "conv1x1", 5 * 7 + 7),
        ("auto", (5, 4, 4), (4, 4, 7), False, "conv1x1", 5 * 7 + 7),
        ("linear", (8, 4, 4), (6, 2, 2), False, "linear", 128 * 24 + 24),
        ("linear", (8, 2, 2), (10,), False, "linear", 32 * 10 + 10),
        ("linear", (3, 4), (2, 2, 2), False, "linear", 12 * 8 + 8),
        ("auto", (), (), False, "linear", 2),
        ("linear", (), (), False, "linear", 2),
        ("linear", (), (5,), False, "linear", 5 + 5),
        ("linear", (2, 3, 3), (), False, "linear", 18 + 1),
        ("none", (), (), False, "none", 0),
        ("none", (2, 2, 2, 2, 2), (2, 2, 2, 2, 2), False, "none", 0),
        ("none", (8, 4, 4), (8, 4, 4), False, "none", 0),
        ("none", (8, 4, 4), (8, 2, 2), True, "none", 0),
        ("none", (4, 6, 8), (4, 6, 8), False, "none", 0),  # whichever axis counts channels
    ],
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_connectors_join_these_shapes(wanted, front, back, resize, found, parameters, batch_norm):
    kind = connector_between(layer("a", *front), layer("b", *back), Connector(wanted), resize, GIB)
    assert kind == found
    stitching = StitchingLayer(kind, front, back, batch_norm)
    assert stitching(random(3, *front)).shape == (3, *back)
    norms = 2 * sum(stitching.size) if batch_norm and found != "none" else 0
    assert sum(parameter.numel() for parameter in stitching.parameters()) == parameters + norms
    again = StitchingLayer.from_json(stitching.json())
    again.load_state_dict(stitching.state_dict())
    stitching.eval(), again.eval()
    assert torch.equal(stitching(random(3, *front)), again(random(3, *front)))


@pytest.mark.parametrize(
    ("wanted", "front", "back", "message"),
    [
        ("auto", (8, 4, 4), (6, 2, 2), r"\(8, 4, 4\) to 'b' of shape \(6, 2, 2\).*--resize"),
        ("auto", (9, 5), (4, 5), "--resize"),
        ("auto", (8, 4, 4), (10,), "--connector linear"),
        ("auto", (), (5,), "use --connector linear"),
        ("conv1x1", (5,), (5,), "use --connector linear"),
        ("conv1x1", (), (), "use --connector linear"),
        ("none", (8, 4, 4), (6, 4, 4), "use --connector auto"),
        ("none", (8, 4, 4), (8, 2, 2), "--resize"),
        ("linear", (64, 56, 56), (64, 56, 56), "40,282,095,616 weights.*--memory"),
    ],
)
def test_what_no_connector_joins_is_an_error_with_the_way_out(wanted, front, back, message):
    with pytest.raises(MemtoolError, match=message):
        connector_between(layer("a", *front), layer("b", *back), Connector(wanted), False, GIB)


@pytest.mark.parametrize("connector", Connector)
def test_no_error_names_the_connector_that_was_given(connector):
    shapes = (), (3,), (2, 3), (3, 2, 2), (2, 2, 2, 2, 2)
    for front in shapes:
        for back in shapes:
            try:
                StitchSettings((Direction.forward,), TrainConfig(), connector).layer(
                    (layer("a", *front), layer("b", *back))
                )
            except MemtoolError as error:
                assert f"--connector {connector}" not in str(error)
            else:
                assert connector in (Connector.auto, Connector.linear) or len(front) == len(back)


def test_who_gives_the_front_in_which_direction():
    cut = layer("f", 3), layer("b", 4)
    f, b = cut
    found = {way: directed(way, ("noisy", "clean"), cut) for way in Direction}
    assert found[Direction.forward] == (("noisy", "clean"), (f, b))
    assert found[Direction.reverse] == (("clean", "noisy"), (b, f))
    assert found[Direction.control] == (("noisy", "noisy"), (f, f))


def test_an_identity_between_unlike_layers_is_refused_in_the_direction_that_needs_it():
    settings = StitchSettings((Direction.forward,), TrainConfig(), init=Init.identity)
    settings.check([(layer("f", 3), layer("b", 3))])
    with pytest.raises(MemtoolError, match="no identity from the 3 channels of 'f' to the 4"):
        settings.check([(layer("f", 3), layer("b", 4))])
    StitchSettings((Direction.control,), TrainConfig(), init=Init.identity).check(
        [(layer("f", 3), layer("b", 4))]
    )


def test_a_cut_without_a_stitching_layer_is_left_out_unless_it_was_named(caplog):
    caplog.set_level("INFO")
    settings = StitchSettings((Direction.forward, Direction.reverse), TrainConfig())
    real = (layer("a", 4, 2, 2), layer("b", 4, 2, 2))
    complex_ = (layer("c", 4, 2, 2), replace(layer("d", 4, 2, 2), dtype=torch.complex64))
    resized = (layer("e", 4, 6, 6), layer("f", 4, 2, 2))
    chosen = [ChosenCut(cut, False) for cut in (complex_, real, resized)]
    assert settings.joined(chosen, Path("x")) == [real]
    first, second = caplog.messages
    assert first.startswith("x: c left out: no real numbers; nothing joins torch.float32 to")
    assert second.startswith("x: e left out: the positions differ in number; --resize")
    with pytest.raises(MemtoolError, match="'d' are torch.complex64"):
        settings.joined(chosen[:1], Path("x"))
    with pytest.raises(MemtoolError, match="--resize"):
        settings.joined([*chosen, ChosenCut(resized, True)], Path("x"))


def test_cuts_are_left_out_with_a_note_for_each_reason(caplog):
    caplog.set_level("INFO")
    settings = StitchSettings((Direction.reverse,), TrainConfig(), init=Init.identity)
    sizes = {"n": (3, 3), "s": (5, 5), "m": (4, 5), "r": (6, 6), "wide": (7, 3), "t": (6, 6)}
    positions = {"s": (2, 4), "r": (9, 2), "m": (3, 3)}
    chosen = []
    for name, (front, back) in sizes.items():
        here, there = positions.get(name, (2, 2))
        cut = layer(name, front, here, here), layer(f"{name}'", back, there, there)
        chosen.append(ChosenCut(cut, False))
    assert [front.name for front, _ in settings.joined(chosen, Path("x"))] == ["n", "t"]
    assert caplog.messages == [
        "x: s, r left out: the positions differ in number; --resize interpolates, or cut where "
        "the sizes agree (--at FRONT_LAYER=BACK_LAYER)",
        "x: m, wide left out: an identity needs equal numbers of channels; use --init lstsq or "
        "random",
    ]


@pytest.mark.parametrize(
    ("connector", "curve", "rows"), [("auto", False, 2), ("auto", True, 8), ("none", True, 2)]
)
def test_rows_of_a_cut(connector, curve, rows):
    directions = (Direction.forward, Direction.control)
    config = TrainConfig(epochs=3)
    settings = StitchSettings(directions, config, Connector(connector), curve=curve)
    assert settings.rows_per_cut == rows


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_only_real_numbers_are_mapped(dtype):
    real, other = layer("a", 4, 2, 2), replace(layer("b", 4, 2, 2), dtype=dtype)
    assert connector_between(other, other, Connector.none, False, GIB) is Connector.none
    for pair in ((real, other), (other, real), (other, other)):
        with pytest.raises(MemtoolError, match=f"'b' are {dtype}, no real numbers"):
            connector_between(*pair, Connector.auto, False, GIB)
    with pytest.raises(MemtoolError, match=f"no real numbers; nothing joins .* to {dtype}"):
        connector_between(real, other, Connector.none, False, GIB)


def test_a_stitching_layer_takes_any_precision():
    stitching = StitchingLayer(Connector.conv1x1, (3, 2, 2), (5, 2, 2))
    images = random(4, 3, 2, 2)
    expected = stitching(images.bfloat16().float())
    assert torch.equal(stitching(images.bfloat16()), expected)
