"""Tensors, dicts and modules among the inert values of a pickle."""

import argparse
import collections
import dataclasses
import datetime
import enum
import functools
import io
import pathlib
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from memtool import MemtoolError
from memtool.checkpoints.archives import unzipped
from memtool.checkpoints.conversion import unpickle
from memtool.checkpoints.pickles import Call, Name
from memtool.checkpoints.rebuilding import entries, is_tensor, tensor


@dataclasses.dataclass
class Config:
    lr: float = 0.1
    layers: list[int] = dataclasses.field(default_factory=lambda: [1, 2])


class Color(enum.Enum):
    RED = 1


class AttrDict(dict):
    """A dict whose items are its attributes, as many have written it."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class Slots:
    __slots__ = ("a",)


class Trainer:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Network(nn.Module):
    """One with everything that a module can have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.scale = nn.Parameter(torch.rand(2))
        self.register_parameter("missing", None)
        self.register_buffer("kept", torch.rand(3))
        self.register_buffer("hidden", torch.rand(3), persistent=False)
        self.register_buffer("none", None)
        self.tied = self.stem[0]
        self.heads = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False)})
        self.config, self.function = Config(), torch.nn.functional.relu


torch.manual_seed(0)
STATE = Network().state_dict()


def surroundings() -> dict[str, Any]:
    """What training code saves beside the weights."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    slots = Slots()
    slots.a = np.zeros(3)
    return {
        "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("runs")),
        "loss": np.float32(0.5),
        "epoch": np.int64(4),
        "random": np.random.get_state(),
        "generator": np.random.default_rng(0),
        "config": Config(),
        "color": Color.RED,
        "slots": slots,
        "partial": functools.partial(print, 1),
        "time": datetime.datetime(2026, 11, 1),
        "counts": collections.Counter("abc"),
        "default": collections.defaultdict(list, a=[1]),
        "queue": collections.deque([1], 3),
        "attributes": AttrDict(a=AttrDict(b=1)),
        "optimizer": optimizer.state_dict(),
        "objects": [optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)],
        "device": torch.device("cpu"),
        "type": torch.float16,
        "size": torch.Size([1, 2]),
        "set": {1, (2, 3)},
        "frozen": frozenset([4]),
        "number": 3 + 4j,
        "array": np.arange(3),
        "text": np.array(["a"]),
        "function": len,
    }


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(expected) and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


CONTENTS = {
    "beside everything": lambda: {**surroundings(), "state_dict": STATE},
    "among everything": lambda: {**STATE, **surroundings()},
    "a dict of one's own": lambda: AttrDict(model=AttrDict(STATE), more=AttrDict(a=1)),
    "an object": lambda: Trainer(state_dict=STATE, epoch=3),
    "an unusual key": lambda: {"generator_weights": STATE, "step": 3},
    "the first of two": lambda: (STATE, {"state": {}}),
    "parameters": lambda: {name: nn.Parameter(value) if value.is_floating_point() else value
                           for name, value in STATE.items()},
    "an OrderedDict": lambda: collections.OrderedDict(reversed(list(reversed(STATE.items())))),
}  # fmt: skip


@pytest.mark.parametrize("way", ["zip", "before 1.6", 2, 5])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_weights_beside_anything(tmp_path, content, way):
    path = tmp_path / "run.pth"
    if isinstance(way, int):
        path.write_bytes(pickle.dumps(content(), way))
    else:
        torch.save(content(), path, _use_new_zipfile_serialization=way == "zip")
    assert same(unpickle(path), STATE)


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("wrap", [
    lambda model: model,
    lambda model: {"model": model, "epoch": 3},
    lambda model: {"ema": None, "net": model, "args": argparse.Namespace()},
    lambda model: {"unusual": model},
    lambda model: Trainer(model=model),
], ids=["alone", "model", "net", "unusual", "object"])  # fmt: skip
def test_a_whole_module_gives_what_its_state_dict_has(tmp_path, caplog, wrap, protocol):
    torch.manual_seed(1)
    model = Network()
    torch.save(wrap(model), tmp_path / "whole.pth", pickle_protocol=protocol)
    with caplog.at_level("INFO"):
        assert same(unpickle(tmp_path / "whole.pth"), model.state_dict())
    assert "took the parameters and buffers of a whole" in caplog.text
    assert "Network" in caplog.text


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


@pytest.mark.parametrize("wrap", [
    lambda: nn.DataParallel(Network()),
    lambda: compiled(Network()),
    lambda: nn.Sequential(compiled(Network()), nn.Linear(2, 2)),
    lambda: compiled(nn.Sequential(compiled(nn.Linear(2, 2)))),
    lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))),
], ids=["parallel", "compiled", "a compiled part", "compiled twice", "traced"])  # fmt: skip
def test_a_wrapped_module(tmp_path, wrap):
    model = wrap()
    torch.save(model, tmp_path / "whole.pth")
    assert same(unpickle(tmp_path / "whole.pth"), model.state_dict())


def linked(outer: nn.Module, inner: nn.Module) -> nn.Module:
    outer._modules["inner"] = inner
    return outer


def shared_twice(depth: int) -> nn.Module:
    """A module of 2^depth paths."""
    module: nn.Module = nn.Linear(1, 1)
    for _ in range(depth):
        module = nn.Sequential(module, module)
    return module


def test_modules_in_each_other_end(tmp_path, monkeypatch):
    monkeypatch.setattr("memtool.checkpoints.rebuilding.MAX_MODULES", 1000)
    path = tmp_path / "cycle.pth"
    module = nn.Linear(1, 1)
    for content in (linked(module, module), shared_twice(20)):
        torch.save({"model": content}, path)
        with pytest.raises(MemtoolError, match="absurdly"):
            unpickle(path)


def test_a_dict_in_itself_ends(tmp_path):
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "cycle.pth")
    with pytest.raises(MemtoolError, match="there are no named tensors under 'model.model"):
        unpickle(tmp_path / "cycle.pth")


def test_several_networks_are_named(tmp_path):
    torch.save({"generator": STATE, "critic": STATE}, tmp_path / "gan.pth")
    with pytest.raises(MemtoolError, match="in it, but under 'generator', 'critic'; save a file"):
        unpickle(tmp_path / "gan.pth")


# --- Tensors --------------------------------------------------------------------------------------

ARRAYS = {
    "float": np.random.default_rng(0).normal(size=(3, 4)),
    "fortran": np.asfortranarray(np.arange(6.0, dtype=np.float32).reshape(2, 3)),
    "strided": np.arange(10)[::3],
    "big endian": np.arange(4, dtype=">i4"),
    "half": np.ones(3, np.float16),
    "bool": np.array([True, False]),
    "bytes": np.arange(3, dtype=np.uint8),
    "empty": np.zeros((0, 2), np.float32),
    "scalar": np.array(1.5),
}


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_are_tensors(tmp_path, protocol):
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps({"model": ARRAYS, "author": "someone"}, protocol))
    found = unpickle(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].shape == array.shape
        assert found[name].numpy().dtype == array.dtype.newbyteorder("=")
        assert found[name].tolist() == array.tolist()


class Special(torch.Tensor):
    pass


def with_attribute(value: nn.Parameter) -> nn.Parameter:
    value.note = "of optimizers"
    return value


def test_tensors_of_classes_of_their_own(tmp_path):
    content = {
        "x": torch.ones(2).as_subclass(Special),
        "y": with_attribute(nn.Parameter(torch.ones(3))),
    }
    torch.save(content, tmp_path / "x.pth")
    found = unpickle(tmp_path / "x.pth")
    assert type(found["x"]) is torch.Tensor and found["x"].tolist() == [1, 1]
    assert found["y"].tolist() == [1, 1, 1]


UNREADABLE = {
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.ones(3, device="meta"),
    "conjugated": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "lazy": lambda: nn.LazyLinear(3).weight,
    "objects": lambda: np.array([None, {}], dtype=object),
    "text": lambda: np.array(["a"]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNREADABLE)
def test_tensors_that_are_not_read_are_named_with_the_reason(tmp_path, name):
    value = UNREADABLE[name]()
    weight = np.ones(1) if isinstance(value, np.ndarray) else torch.ones(1)
    torch.save({"conv.weight": weight, "conv.bias": value}, tmp_path / "x.pth")
    with pytest.raises(MemtoolError, match="its tensor conv.bias (is|was) ") as error:
        unpickle(tmp_path / "x.pth")
    assert "\n" not in str(error.value)


def test_calls_that_are_not_as_pytorch_makes_them():
    archive = unzipped(io.BytesIO(pickle.dumps({})))
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    array = Name("numpy.core.multiarray", "_reconstruct")
    endless = Call(Name("torch._utils", "_rebuild_parameter"), [])
    endless.arguments.append(endless)
    calls = [Call(rebuild, arguments) for arguments in ((), None, 3, "text", (1, 2, 3, 4), [[]])]
    calls += [endless, Call(array, ()), Call(array, (), [None]), Call(array, (), [(1, 2, 3, 4, 5)])]
    bytes_ = Call(Name("torch.storage", "_load_from_bytes"), (pickle.dumps(3),))
    calls += [Call(rebuild, (bytes_, 0, (1,), (1,))), Call(rebuild, (Call(rebuild, ()), 0, (), ()))]
    for call in calls:
        assert is_tensor(call)
        with pytest.raises(ValueError):
            tensor(call, archive)
    for value in (None, 3, "x", {}, [], Name("a", "b"), Call(Name("os", "system"), ("x",))):
        assert not is_tensor(value)
        with pytest.raises(ValueError):
            tensor(value, archive)


def test_entries():
    call = Call(Name("a", "b"), (), [({"x": 1}, {"y": 2})])
    assert entries(call) == {"x": 1, "y": 2}
    assert entries(Call(Name("a", "b"), (), [{"_metadata": 1}], {"z": 3})) == {"z": 3}
    assert entries(["a"]) == {0: "a"}
    assert entries(3) is entries("text") is entries(Name("a", "b")) is None
    pairs = Call(Name("collections", "OrderedDict"), ([["a", 1], ("b", 2)],), [], {"c": 3})
    assert entries(pairs) == {"a": 1, "b": 2, "c": 3}
    for arguments in ((), (3,), [3], None):
        assert not entries(Call(Name("a", "OptimizedModule"), arguments))
        assert not entries(Call(Name("a", "reduce_graph_module"), arguments))
