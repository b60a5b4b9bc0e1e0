"""Where networks can be cut, and which cuts meet."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from memtool import MemtoolError
from memtool.layers import Layer, trace
from memtool.layers.layer import UNCALLED
from memtool.stitching.cuts import ChosenCut, matching_cuts


def layer(name: str, *shape: int) -> Layer:
    return Layer(name, "Module", shape, True, name)


def test_a_layer_inside_a_residual_branch_is_refused_naming_the_block():
    block = torchvision.models.resnet.BasicBlock
    model = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=4).eval()
    found = trace(model, torch.zeros(2, 3, 32, 32))
    with pytest.raises(MemtoolError, match=r"'layer2.0.conv2' is not a cut.*'layer2.0', is"):
        matching_cuts(found, found, ["layer2.0.conv2"], Path("front"), Path("back"))


@pytest.mark.parametrize("at", ["1", "1.fc", "0=1.fc"])
def test_the_output_is_refused_as_what_it_is(at):
    head = torch.nn.Sequential()
    head.add_module("fc", torch.nn.Linear(3, 2))
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), head).eval()
    found = trace(model, torch.zeros(2, 4))
    told = rf"{'back' if '=' in at else 'front'}: '{at.split('=')[-1]}' is the output: nothing"
    with pytest.raises(MemtoolError, match=told):
        matching_cuts(found, found, [at], Path("front"), Path("back"))


def test_layers_of_other_names_are_asked_for():
    front, back = ([layer("a", 3), layer("b", 3)], [layer("a", 3), layer("c", 3)])
    found = matching_cuts(front, back, ["a", "b=c", "a=a"], Path("front"), Path("back"))
    assert found == [
        ChosenCut((front[0], back[0]), True),
        ChosenCut((front[1], back[1]), True),
    ]
    found = matching_cuts(front, front, ["a", "all"], Path("front"), Path("back"))
    assert [cut.is_named for cut in found] == [True, False]
    with pytest.raises(MemtoolError, match="back: has no layer 'b'.*--at b=BACK_LAYER"):
        matching_cuts(front, back, ["all", "b"], Path("front"), Path("back"))


def test_of_one_tensor_the_outermost_layer_that_matches_is_met_by_a_glob():
    def block():
        return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())

    stages = [torch.nn.Sequential(block(), block()) for _ in range(2)]
    found = trace(torch.nn.Sequential(*stages, torch.nn.Linear(3, 2)).eval(), torch.zeros(2, 3))
    for at, names in (
        (["?.?"], "0.0 0.1 1.0 1.1"),
        (["?.1"], "0.1 1.1"),
        (["1.1.?"], "1.1.0 1.1.1"),
        (["?.?", "1"], "0.0 0.1 1.0 1"),
        (["0.?", "0.1.1"], "0.0 0.1.1 0.1"),
        (["0.?", "0.1=0"], "0.0 0.1 0.1=0"),
        (["0.1*=1.0", "0=1.1"], "0.1.0=1.0 0.1=1.0 0=1.1"),
        (["all"], "0.0.0 0.0 0.1.0 0 1.0.0 1.0 1.1.0 1"),
    ):
        cuts = [cut.layers for cut in matching_cuts(found, found, at, Path("front"), Path("back"))]
        told = ["=".join(dict.fromkeys(layer.name for layer in cut)) for cut in cuts]
        assert " ".join(told) == names


def test_layers_that_may_be_one_tensor_or_two_are_cuts_of_their_own():
    class Guarded(torch.nn.Sequential):
        def forward(self, x):
            x = super().forward(x)
            return x.clamp(-100, 100) if x.abs().max() > 100 else x

    model = torch.nn.Sequential(Guarded(torch.nn.Linear(4, 3)), torch.nn.Linear(3, 2)).eval()
    found = trace(model, torch.zeros(2, 4))
    cuts = matching_cuts(found, found, ["all"], Path("front"), Path("back"))
    assert [cut.layers[0].name for cut in cuts] == ["0.0", "0"]


@pytest.mark.parametrize("at", ["a?=b?", "a1=b?", "a?=all"])
def test_a_glob_for_the_back_means_one_layer(at):
    front = [layer(name, 3) for name in ("a1", "a2")]
    back = [layer(name, 3) for name in ("b1", "b2")]
    ours, theirs = at.split("=")
    told = f"back: {theirs!r} matches several layers: b1, b2; name the one that is meant, as in "
    with pytest.raises(MemtoolError, match=re.escape(f"{told}--at '{ours}=b1'")):
        matching_cuts(front, back, [at], Path("front"), Path("back"))
    one = [layer("b", 3), replace(layer("b.c", 3), same_as="b"), layer("d", 3)]
    cuts = matching_cuts(front, one, ["a?=b*"], Path("front"), Path("back"))
    assert [cut.layers for cut in cuts] == [(layer, one[0]) for layer in front]


def test_cuts_of_a_glob_that_the_back_does_not_have_are_left_out(caplog):
    caplog.set_level("INFO")
    no_cut = replace(layer("c", 3), is_cut=False)
    front = [layer(name, 3) for name in ("a", "b", "c")]
    back = [layer("a", 3), no_cut]
    (cut,) = matching_cuts(front, back, ["?", "all"], Path("front"), Path("back"))
    assert cut.layers == (front[0], back[0])
    lacking, no_cut_there = caplog.messages
    assert lacking.startswith("front: b left out: back has no layer of such a name; --at FRONT")
    assert no_cut_there.startswith("front: c left out: back: 'c' is not a cut")
    a, b = replace(front[0], same_as="b"), front[1]  # b is around a, and not in the back
    (cut,) = matching_cuts([a, b], back, ["all"], Path("front"), Path("back"))
    assert cut.layers == (a, back[0]) and len(caplog.messages) == 2
    for at, told in (
        (["[bc]"], "back: has no layer 'b'"),
        (["all", "c"], "back: 'c' is not a cut"),
        (["all", "?=c"], "back: 'c' is not a cut"),
        (["all", "a=d"], "back: no layer matches 'd'"),
    ):
        with pytest.raises(MemtoolError, match=re.escape(told)):
            matching_cuts(front, back, at, Path("front"), Path("back"))


def test_a_layer_with_its_images_along_another_axis_is_refused_for_that_reason():
    tokens_first = Layer("a", "Module", (16, 3), False, "a", batch_axis=1)
    with pytest.raises(MemtoolError, match="front: 'a' has the images along axis 1"):
        matching_cuts([tokens_first], [tokens_first], ["a"], Path("front"), Path("back"))


@pytest.mark.parametrize(
    ("at", "path"),
    [
        ("front", "front"),
        ("front=a", "front"),
        ("front=front", "front"),
        ("f*", "front"),
        ("back", "back"),
        ("a=back", "back"),
        ("a=b*", "back"),
    ],
)
def test_a_layer_that_is_not_called_is_refused_for_that_reason(at, path):
    one = [layer(name, 3) for name in ("a", "back")]
    uncalled = Layer("front", "Linear", (), False, "front", batch_axis=None, absence=UNCALLED)
    front, back = [*one, uncalled], [one[0], replace(uncalled, name="back")]
    with pytest.raises(MemtoolError, match=f"^{path}: no activations of layer .* not called by"):
        matching_cuts(front, back, [at], Path("front"), Path("back"))


def test_names_may_contain_what_separates_front_and_back():
    front, back = ([layer(name, 3) for name in names] for names in (["a", "k=3"], ["k=3", "b=2"]))
    for at, ours, theirs in (
        ("k=3", "k=3", "k=3"),
        ("k=3=b=2", "k=3", "b=2"),
        ("a=b=2", "a", "b=2"),
        ("k=?=b=?", "k=3", "b=2"),
        ("k=?", "k=3", "k=3"),
    ):
        (cut,) = matching_cuts(front, back, [at], Path("front"), Path("back"))
        assert [one.name for one in cut.layers] == [ours, theirs]
    with pytest.raises(MemtoolError, match="front: no layer matches 'c'"):
        matching_cuts(front, back, ["c=b=2"], Path("front"), Path("back"))
    with pytest.raises(MemtoolError, match="back: no layer matches ''"):
        matching_cuts(front, back, ["a="], Path("front"), Path("back"))


@pytest.mark.parametrize(
    ("at", "told"),
    [
        ("n=1=b", "back: no layer matches 'b';"),
        ("k=3=b", "back: no layer matches 'b';"),
        ("k=3=b=5", "back: no layer matches 'b=5';"),
        ("k=?=b", "back: no layer matches 'b';"),
        ("k=4=b=2", "front: no layer matches 'k=4';"),
        ("k=7", "front: no layer matches 'k=7'; nearest: k=3"),
        ("k=7=b=5", "front: no layer matches 'k=7=b=5';"),
    ],
)
def test_what_matches_no_layer_is_named_as_it_was_typed(at: str, told: str) -> None:
    front, back = ([layer(name, 3) for name in names] for names in (["k=3", "n", "n=1"], ["b=2"]))
    with pytest.raises(MemtoolError) as caught:
        matching_cuts(front, back, [at], Path("front"), Path("back"))
    assert told in str(caught.value)
