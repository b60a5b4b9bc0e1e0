"""Layers: tensors in what modules return, and selection by name."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memtool import MemtoolError
from memtool.layers import Layer, first_tensor, plain, select, tensors_in, trace, traced
from memtool.layers.layer import UNCALLED
from memtool.models import nets


@dataclass
class Output:
    loss: None
    logits: Tensor


def test_the_first_tensor_of_whatever_a_module_gives():
    x, y = torch.zeros(1), torch.ones(1)
    for output in (x, (x, y), [None, x], {"a": x, "b": y}, Output(None, x), (None, {"a": [x]})):
        assert first_tensor(output) is x
    for output in (None, 3, "text", (), {}, [None]):
        assert first_tensor(output) is None


class Named(Tensor):
    pass


class Contagious(Tensor):
    """Makes of each result one of its own, and refuses to be multiplied."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if func is Tensor.mul:
            raise TypeError("no")
        return result.as_subclass(cls) if isinstance(result, Tensor) else result


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x,
        torch.nn.Parameter,
        Tensor.to_sparse,
        lambda x: x.as_subclass(Named),
        lambda x: x.as_subclass(Contagious),
        lambda x: torch.nn.Parameter(x.to_sparse()),
    ],
)
def test_a_plain_tensor_is_dense_and_of_no_subclass(convert):
    values = torch.tensor([[0.0, 3.0], [1.0, 0.0]])
    result = plain(convert(values.clone()))
    assert type(result) is type(result.mul(2)) is Tensor
    assert torch.equal(result, values)


def test_layers_are_selected_by_globs_in_order_of_execution():
    found = trace(nets.digits_cnn(), torch.zeros(2, 1, 8, 8))
    assert [layer.name for layer in select(found, ["fc", "block?"], "x")] == [
        *(f"block{number}" for number in range(1, 7)),
        "fc",
    ]
    assert select(found, ["all"], "x") == found
    assert len(select(found, ["*.relu"], "x")) == 6
    with pytest.raises(
        MemtoolError, match="x: no layer matches 'blok1'; nearest: block1.*--layers x"
    ):
        select(found, ["fc", "blok1"], "x")
    with_comma = [Layer("dw 3x3, s2", "Conv2d", (4,), True, "dw 3x3, s2")]
    with pytest.raises(MemtoolError, match=r"nearest: dw 3x3, s2; \? stands for the comma"):
        select(with_comma, ["dw 3x3"], "x")
    assert select(with_comma, ["dw 3x3? s2"], "x") == with_comma


def test_patterns_match_with_and_without_the_prefixes_of_parts():
    names = ["front.a.conv", "front.a", "map", "back.a", "back.b", "front.back.b"]
    layers = [Layer(name, "Conv2d", (4,), True, name) for name in names]
    parts = ("front.", "back.")
    for pattern, expected in {
        "a": ["front.a", "back.a"],
        "?": ["front.a", "back.a", "back.b"],
        "front.a": ["front.a"],
        "a.*,map": ["front.a.conv", "map"],
        "back.b": ["back.b", "front.back.b"],
    }.items():
        assert [one.name for one in select(layers, pattern.split(","), "x", parts)] == expected
    with pytest.raises(MemtoolError, match="no layer matches 'a'"):
        select(layers, ["a"], "x")


def test_all_tensors_of_whatever_a_module_gives():
    x, y = torch.zeros(1), torch.ones(1)
    found = list(tensors_in({"a": [x, None], "b": Output(None, y), "c": "text"}))
    assert len(found) == 2 and found[0] is x and found[1] is y


def test_layers_without_a_batch_axis_are_left_out_and_refused_by_name(caplog):
    caplog.set_level("INFO")
    layers = [
        Layer("stem", "Conv2d", (4,), True, "stem"),
        Layer("windows", "Conv2d", (), False, "windows", batch_axis=None),
    ]
    assert select(layers, ["all"], "x") == select(layers, ["*s*"], "x") == layers[:1]
    assert caplog.messages == ["x: windows left out: no axis of the output counts the images"] * 2
    with pytest.raises(MemtoolError, match="x: no axis of the output of layer 'windows' counts"):
        select(layers, ["all", "windows"], "x")
    with pytest.raises(MemtoolError, match="x: no axis of the output of layer 'w\\*'"):
        select(layers, ["w*"], "x")


class Leaving(nn.Module):
    """Early exit, where all images are sure enough, and a part that returns no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc, self.score = nn.Linear(3, 4), nn.Linear(4, 2), Score()
        self.rest = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU())])
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.score(x) < 1e6:
            return self.fc(x)
        return self.last(self.rest[0](x))


class Score(nn.Module):
    def forward(self, x: Tensor) -> float:
        return x.abs().max().item()


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("last", "'last': not called by the model in the pass that shows its layers; others"),
        ("rest.0", "'rest.0': not called"),
        ("rest.0.0", "'rest.0.0': not called"),
        ("rest.*", "'rest.*': not called"),
        ("?ast", "'?ast': not called"),
        ("score", "'score': no tensor that has an axis is returned; others: memtool info"),
    ],
)
def test_modules_without_activations_are_left_out_and_refused_for_that_reason(
    caplog, pattern, told
):
    caplog.set_level("INFO")
    found = traced(Leaving(), torch.randn(2, 3)).named
    assert [layer.name for layer in select(found, ["all"], "x")] == ["stem", "fc"]
    assert caplog.messages == [
        "x: score left out: no tensor that has an axis is returned",
        "x: rest.0, rest.0.0, rest.0.1, last left out: "
        "not called by the model in the pass that shows its layers",
    ]
    with pytest.raises(MemtoolError) as raised:
        select(found, ["all", pattern], "x")
    assert f"x: no activations of layer {told}" in str(raised.value)
    assert "nearest" not in str(raised.value)
    assert [layer.name for layer in trace(Leaving(), torch.randn(2, 3))] == ["stem", "fc"]


def test_parts_of_a_stitched_model_that_do_not_run_are_told_by_name_alone(caplog):
    caplog.set_level("INFO")
    layers = [
        Layer("front.a", "Linear", (4,), True, "front.a"),
        Layer("front.fc", "Linear", (), False, "front.fc", batch_axis=None, absence=UNCALLED),
    ]
    parts = ("front.", "back.")
    assert select(layers, ["all"], "x", parts) == layers[:1] and not caplog.messages
    for pattern in ("fc", "front.fc"):
        with pytest.raises(MemtoolError, match=f"no activations of layer '{pattern}': not called"):
            select(layers, [pattern], "x", parts)


@pytest.mark.filterwarnings("ignore:.*torch.jit.(script|trace)")
@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda module: torch.jit.trace(module, torch.zeros(1, 3))]
)
def test_scripted_modules_are_left_out_and_refused_for_that_reason(caplog, make):
    caplog.set_level("INFO")
    inner = make(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()))
    layers = trace(torch.nn.Sequential(inner, torch.nn.Linear(4, 2)), torch.zeros(2, 3))
    assert [layer.name for layer in select(layers, ["all"], "x")] == ["1"]
    (told,) = caplog.messages
    assert told.startswith("x: 0, 0.0, 0.1 left out: scripted modules hide what they compute")
    for pattern in ("0", "0.*"):
        with pytest.raises(MemtoolError, match="x: no activations of .* without torch.jit"):
            select(layers, ["all", pattern], "x")
